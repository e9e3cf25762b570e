import json
from typing import Any

import pytest

from serve_app.answer_text import read_answer


def stream(*events: dict[str, Any]) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"choices": [{"index": 0, "message": {"content": "one two"}}]}),
        json.dumps({"choices": [{"index": 0, "text": "one two"}]}),
        json.dumps({"output": [{"content": [{"type": "output_text", "text": "one two"}]}]}),
        json.dumps({"content": [{"type": "text", "text": "one two"}]}),
        stream(
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
            {"choices": [{"index": 0, "delta": {"content": "one "}}]},
            {"choices": [{"index": 0, "delta": {"content": "two"}}]},
            {"choices": [], "usage": {}},
        )
        + "data: [DONE]\n\n",
        ": waiting\n\n" + stream({"choices": [{"index": 0, "text": "one two"}]}),
        stream({"type": "response.output_text.delta", "output_index": 0, "delta": "one two"}),
        "event: x\n"
        + stream({"type": "content_block_delta", "index": 0, "delta": {"text": "one two"}}),
    ],
)
def test_text_is_found_in_every_form(body: str) -> None:
    assert read_answer(body) == "one two"


def test_choices_stand_apart_and_what_is_no_answer_is_shown_as_it_is() -> None:
    choices = [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}]
    assert read_answer(json.dumps({"choices": choices})) == "a\n\nb"
    for body in ('{"error": {"message": "no"}}', '{"choices": [{"te', "", "[1]"):
        assert read_answer(body) == body
