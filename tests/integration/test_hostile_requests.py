"""Nothing that a client sends makes a 5xx, ends a stream without a word, or hurts anybody else.

Each parameter that the OpenAPI document names is set to values that are wrong in every way thought
of, one at a time, in an otherwise good request. The fast test does it with the echo engine and a
seeded choice of them; the slow one sends more of them to the real engine, which must live.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.clients import connect
from tests.support.platform import LocalPlatform

ASK = {"role": "user", "content": "hi"}
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [ASK], "max_tokens": 3},
    "/v1/completions": {"prompt": "hi", "max_tokens": 3},
    "/v1/responses": {"input": "hi", "max_output_tokens": 3},
    "/v1/messages": {"messages": [ASK], "max_tokens": 3},
    "/v1/messages/count_tokens": {"messages": [ASK]},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}
WRONG: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, -1e308, 1e308, 1.5,
    "", "x", "\u0000", "\u00fc", "a" * 3000, [], [None], [-1], [2**70], [49_152], [[]], {},
    {"": None}, {"a": {"b": 1}}, [{}], ["x"], [1, 2], {"type": "x"}, [["x"]], "auto", "required",
    "none", {"1": 1}, {"-1": 1}, {"99999999": 100}, {"9" * 20: 100}, {"1": 1e308},
]  # fmt: skip


def _schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


def _function(**fields: Any) -> list[Any]:
    return [{"type": "function", "function": fields}]


def _part(kind: str, value: Any) -> list[Any]:
    return [{"role": "user", "content": [{"type": kind, kind: value}]}]


WRONG_FOR: dict[str, list[Any]] = {
    "response_format": [
        {"type": "json_schema"},
        _schema({"type": "nope"}),
        _schema({"$ref": "#/a"}),
        _schema({"type": "object", "properties": {"a": {"$ref": "#"}}}),
        _schema({"type": "string", "pattern": "("}),
        _schema({"type": "string", "pattern": "(?=a)b\\1"}),
        _schema({"type": "array", "minItems": 10**9}),
        {"type": "json_object"},
        {"type": "structural_tag", "format": {}},
        {"type": "structural_tag", "structures": [], "triggers": []},
    ],
    "structured_outputs": [
        {"regex": "("},
        {"regex": "a{1,100000}"},
        {"regex": "((a{1,100}){1,100}){1,100}"},
        {"regex": "\x00"},
        {"regex": "(" * 5000 + ")" * 5000},
        {"regex": "(a|b)*" * 200},
        {"json": "{"},
        {"json": {"type": "nope"}},
        {"json": json.loads('{"items":' * 400 + "{}" + "}" * 400)},
        {"json": {"enum": []}},
        {"json": {"anyOf": []}},
        {"json": {"not": {}}},
        {"json": {"type": "array", "minItems": 10**9}},
        {"json": {"type": "array", "minItems": 10**30}},
        {"json": '{"type": "array", "minItems": 1000000000}'},
        {"json": {"type": "string", "minLength": 10**9}},
        {"json": {"type": "integer", "minimum": 10**30}},
        {"json": {"type": "object", "patternProperties": {"(": {}}}},
        {"json": {"type": "object"}, "whitespace_pattern": "("},
        {"grammar": "x"},
        {"grammar": "root ::= root"},
        {"grammar": 'root ::= "a" | x'},
        {"grammar": "root ::= " + "(" * 5000},
        {"choice": []},
        {"choice": [""]},
        {"choice": ["\x00"]},
        {"choice": ["a"], "regex": "b"},
        {"structural_tag": "{}"},
        {"structural_tag": "x"},
    ],
    "tools": [
        [{"type": "function"}],
        _function(name=""),
        _function(name="f", parameters={"type": "nope"}),
        _function(name="f", parameters={"$ref": "x"}),
        _function(name="f", parameters=[]),
    ],
    "messages": [
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "nope", "content": "x"}],
        [{"role": "user", "content": "\x00"}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "nope"}]}],
        [{"role": "user", "content": {"a": 1}}],
        [{"role": "user", "content": "x", "name": 5}],
        [{"role": "tool", "content": "x"}],
        [{"role": "assistant", "content": "x"}],
        [{"role": "assistant", "content": "x", "tool_calls": 5}],
        [{"role": "assistant", "tool_calls": _function(name="f", arguments="{")}],
        [ASK, ASK, ASK],
        _part("image_url", {"url": "http://127.0.0.1:1/x"}),
        _part("image_url", {"url": "data:,x"}),
        _part("audio_url", {"url": "x"}),
        _part("input_audio", {"data": "x", "format": "wav"}),
        _part("image_embeds", "x"),
    ],
    "chat_template": ["{{", "{{ 1/0 }}", "{{ messages[5].x.y }}"],
    "chat_template_kwargs": [
        {"tools": 5},
        {"messages": 5},
        {"tokenize": False},
        {"chat_template": "{{"},
        {"add_generation_prompt": 5},
        {"return_tensors": "pt"},
        {"continue_final_message": True},
        {"max_length": 1, "truncation": True},
    ],
    "prompt": [
        [1, 2, 3], [-1], [49_152], [2**63], [10**30], [[1], []], [[1], [-5]], ["a", 1], [[]],
        [""], ["a", "b"], [5] * 600,
    ],
    "prompt_embeds": ["x", "AAAA", ["AAAA"]],
    "tokens": [[-1], [49_152], [2**40], [2**63], [2**64]],
    "input": [
        [{"role": "user", "content": "x"}],
        [{"type": "nope"}],
        [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
        [{"role": "user", "content": [{"type": "input_text"}]}],
        [{"type": "function_call_output", "call_id": "x", "output": "y"}],
        [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "{"}],
        [{"type": "reasoning", "id": "x", "summary": []}],
        [{"type": "item_reference", "id": "x"}],
        [{"role": "assistant", "content": [{"type": "output_text", "text": "x"}]}],
    ],
    "logit_bias": [{"x": 1}, {"49152": 1}, {"1": "x"}, {"1": 1000}, {"9" * 30: 1}],
    "stop": [[""], ["a"] * 1000, [None]],
    "tool_choice": [
        {"type": "function", "function": {"name": "f"}},
        {"type": "function"},
        {"type": "function", "name": "f"},
        {"type": "tool", "name": "x"},
        {"type": "any"},
    ],
    "text": [
        {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nope"}}},
        {"format": {"type": "json_schema"}},
        {"format": {"type": "x"}},
    ],
    "vllm_xargs": [{"a": [1]}, {"a": {"b": 1}}, {"kv_transfer_params": {"a": 1}}],
    "kv_transfer_params": [
        {"do_remote_decode": True},
        {"do_remote_prefill": True, "remote_block_ids": [1], "remote_engine_id": "x"},
    ],
    "bad_words": [["x"], [""]],
    "previous_response_id": ["resp_x"],
    "thinking_token_budget": [5, -5],
    "repetition_detection": [{"max_pattern_size": 5}, {"max_pattern_size": -5, "min_count": 1}],
}  # fmt: skip
TOGETHER: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 5},
    {"logprobs": True, "top_logprobs": 10**9},
    {"logprobs": 5},
    {"logprobs": -1},
    {"prompt_logprobs": 3},
    {"prompt_logprobs": -1},
    {"prompt_logprobs": 10**9},
    {"echo": True, "logprobs": 2},
    {"echo": True, "max_tokens": 0},
    {"use_beam_search": True, "n": 2},
    {"best_of": 3},
    {"max_tokens": 0},
    {"min_tokens": 5, "max_tokens": 2},
    {"max_completion_tokens": 10**9},
    {"n": 10**6},
    {"top_k": -2},
    {"top_p": 0},
    {"temperature": 1e-300},
    {"continue_final_message": True, "add_generation_prompt": False},
    {"continue_final_message": True},
    {"return_token_ids": True},
    {"allowed_token_ids": [0]},
    {"allowed_token_ids": [49_152]},
    {"stop_token_ids": [-1]},
    {"truncate_prompt_tokens": 0},
    {"truncate_prompt_tokens": 10**9},
    {"ignore_eos": True, "max_tokens": 600},
    {"store": True, "background": True},
    {"return_tokens_as_token_ids": True, "logprobs": 1},
    {"logprob_token_ids": [49_153], "logprobs": True},
    {"logprob_token_ids": [1]},
    {"include_stop_str_in_output": True, "stop": ["a"]},
    {"suffix": "x"},
    {"n": 2, "echo": True},
    {"repetition_penalty": 1e-40},
    {"repetition_penalty": 1e40},
    {"detokenize": False, "stop": "a"},
    {"skip_special_tokens": False, "spaces_between_special_tokens": False},
]


@dataclass(frozen=True)
class Hostile:
    path: str
    changes: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path} {json.dumps(self.changes)[:200]}"


def list_hostile(document: dict[str, Any]) -> list[Hostile]:
    """Every request that the tables above make of the paths and parameters in the document."""
    return [
        Hostile(path, changes)
        for path in GOOD
        for name in [*sorted(_find_parameters(document, path)), None]
        for changes in _list_changes(name)
    ]


def _list_changes(name: str | None) -> Iterator[dict[str, Any]]:
    if name is None:
        for changes in TOGETHER:
            yield changes
            yield changes | {"stream": True}
        return
    special = WRONG_FOR.get(name, [])
    for value in [*WRONG, *special]:
        yield {name: value}
    for value in special:
        yield {name: value, "stream": True}


def _find_parameters(document: dict[str, Any], path: str) -> set[str]:
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return set(_walk(document, content["application/json"]["schema"])) - {"model"}


def _walk(document: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from _walk(document, document["components"]["schemas"][name])
    for kind in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(kind, []):
            yield from _walk(document, part)
    yield from schema.get("properties", {})


def send(client: httpx.Client, hostile: Hostile) -> str | None:
    """Sends a request; returns what is wrong with the answer, or None."""
    body = {"model": "tiny", **GOOD[hostile.path], **hostile.changes}
    try:
        answer = client.post(hostile.path, content=json.dumps(body).encode())
    except httpx.HTTPError as error:
        return f"{hostile}: {type(error).__name__} {error}"
    if answer.status_code >= 500 or "Traceback" in answer.text:
        return f"{hostile}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code >= 400 and not answer.json()["error"]["message"]:
        return f"{hostile}: {answer.status_code} without a message"
    if '"code":500' in answer.text.replace(" ", ""):
        return f"{hostile}: an error of ours in a stream: {answer.text[-300:]}"
    return None


def check_all_are_answered(platform: LocalPlatform, seed: int, share: float) -> None:
    with httpx.Client(
        base_url=platform.url, timeout=30.0, headers={"content-type": "application/json"}
    ) as client:
        everything = list_hostile(client.get("/openapi.json").json())
        assert len(everything) > 8000
        chosen = random.Random(seed).sample(everything, int(share * len(everything)))
        special = [h for h in everything if set(h.changes) & WRONG_FOR.keys() and h not in chosen]
        problems = [text for hostile in [*special, *chosen] if (text := send(client, hostile))]
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:50])
    # All are over, and others are served as ever.
    platform.wait_until(lambda: platform.count_running() == 0, 10.0, "idle")
    answer = connect(platform.url).completions.create(model="tiny", prompt="One", max_tokens=1)
    assert answer.choices[0].finish_reason == "length"


def test_hostile_requests_are_answered_by_the_platform(echo_platform: LocalPlatform) -> None:
    check_all_are_answered(echo_platform, seed=1, share=0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hostile_requests_do_not_hurt_the_real_engine(vllm_platform: LocalPlatform) -> None:
    check_all_are_answered(vllm_platform, seed=2, share=0.15)
    assert all(process.is_alive() for process in vllm_platform.engine_processes.values())


@pytest.mark.parametrize("depth", [100, 100_000])
@pytest.mark.parametrize("path", GOOD)
def test_deeply_nested_json_is_refused(echo_platform: LocalPlatform, path: str, depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    body = (
        b'{"model":"tiny","x":' + nested + b',"messages":' + nested + b',"input":' + nested + b"}"
    )
    answer = httpx.post(
        echo_platform.url + path, content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, answer.text[:300]


@pytest.mark.parametrize("text", [b'"\\ud800"', b'"\\u0000"', b'"a\\udfff\\ud800b"'])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_text_that_is_no_text_is_answered(
    echo_platform: LocalPlatform, path: str, text: bytes
) -> None:
    body = (
        b'{"model":"tiny","max_tokens":2,"prompt":' + text + b',"messages":'
        b'[{"role":"user","content":' + text + b"}]}"
    )
    answer = httpx.post(
        echo_platform.url + path, content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code < 500, answer.text[:300]
