"""Reads what an answer says out of how it went over the wire, for people who compare two."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any


def read_answer(body: str) -> str:
    """Returns the text of an answer of any of the APIs, whole or a stream's events.

    Several choices stand under one another. What holds no text, such as an error, is returned as it
    is.
    """
    is_stream = body.startswith(("data:", "event:", ":"))
    parts: defaultdict[int, str] = defaultdict(str)
    for event in _read_events(body) if is_stream else _read_whole(body):
        for index, text in _read_texts(event):
            parts[index] += text
    return "\n\n".join(parts[index] for index in sorted(parts)) or body


def _read_events(body: str) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        if line.startswith("data: {"):
            yield from _read_whole(line.removeprefix("data: "))


def _read_whole(body: str) -> Iterator[dict[str, Any]]:
    try:
        value = json.loads(body)
    except ValueError:
        return  # It was cut off.
    if isinstance(value, dict):
        yield value


def _read_texts(value: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Texts of one event or of a whole answer, with the choice that each belongs to."""
    for choice in _dicts(value.get("choices")):
        said = choice.get("delta") or choice.get("message") or {}
        yield choice.get("index", 0), choice.get("text") or said.get("content") or ""
    if value.get("type") == "response.output_text.delta":
        yield value.get("output_index", 0), value["delta"]
    elif value.get("type") == "content_block_delta":
        yield value.get("index", 0), value["delta"].get("text", "")
    for index, item in enumerate(_dicts(value.get("output"))):
        yield from ((index, part.get("text", "")) for part in _dicts(item.get("content")))
    for index, part in enumerate(_dicts(value.get("content"))):
        yield index, part.get("text", "")


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
