"""Requests of every kind to the real small model, and whether an answer that moved equals one that
did not.

float32: a token that is computed again with others, as part of a prompt, gets the same numbers up
to the last bits, and in bfloat16 those decide between likely tokens now and then.
"""

import json
from typing import Any

import jsonschema

from serve_app.names import ModelName
from tests.support.clients import ask
from tests.support.platform import LocalPlatform
from tests.support.settings import write_vllm_model
from tests.support.streams import Stream

REAL = ModelName("smollm2")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "home": {"type": "string", "maxLength": 30},
    },
    "required": ["name", "age", "home"],
    "additionalProperties": False,
}
PERSON = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
STORE = {"type": "function", "function": {"name": "store", "parameters": SCHEMA, "strict": True}}
GREEDY = {"temperature": 0.0, "max_tokens": 80}
COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time there was a mule driver who"} | GREEDY,
    {"prompt": "def fibonacci(n):\n", "logprobs": 3} | GREEDY,
    {"prompt": "A short poem about mountains:\n", "repetition_penalty": 1.3} | GREEDY,
    {"prompt": "The capital of France is", "min_tokens": 70} | GREEDY,
    {"prompt": "To make bread, you need", "presence_penalty": 0.7, "frequency_penalty": 0.5}
    | GREEDY,
    {"prompt": "Dear Sir or Madam,\n\nI am", "temperature": 0.9, "seed": 7, "max_tokens": 80},
    {"prompt": "In 1969,", "temperature": 1.0, "top_p": 0.8, "seed": 5, "n": 2, "max_tokens": 80},
    {"prompt": "word " * 200, "echo": True, "logprobs": 1} | GREEDY,
]
CHATS: list[dict[str, Any]] = [
    {"messages": ask("Describe a person as JSON."), "response_format": PERSON} | GREEDY,
    {
        "messages": ask("Store a person called Ada, who is 36."),
        "tools": [STORE],
        "tool_choice": {"type": "function", "function": {"name": "store"}},
    }
    | GREEDY,
    {"messages": ask("Tell me about mules."), "logprobs": True, "top_logprobs": 2} | GREEDY,
]


def write_entry() -> dict[str, Any]:
    """The model entry of engines that can do all of these."""
    args = {"max_model_len": 1024, "max_num_seqs": 16, "enforce_eager": True, "dtype": "float32"}
    cpu = {"kind": "cpu", "kv_cache_gib": 1, "threads": 1}
    front_end = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}
    return write_vllm_model(
        args, name=REAL, accelerator=cpu, front_end=front_end, drain_timeout_s=2.0
    )


def start_all(platform: LocalPlatform) -> list[Stream]:
    """Starts one stream of each kind."""
    requests = [("/v1/completions", request) for request in COMPLETIONS]
    requests += [("/v1/chat/completions", request) for request in CHATS]
    return [start(platform, path, request) for path, request in requests]


def read(stream: Stream) -> dict[int, dict[str, Any]]:
    """What came by choice: text, tokens, log-probabilities, tool calls, and how it ended."""
    found: dict[int, dict[str, Any]] = {}
    for event in stream.events():
        for choice in event["choices"]:
            seen = found.setdefault(
                choice["index"], {"text": "", "ids": [], "logprobs": [], "arguments": ""}
            )
            delta = choice.get("delta") or {}
            seen["text"] += choice.get("text") or delta.get("content") or ""
            seen["ids"] += choice.get("token_ids") or []
            logprobs = choice.get("logprobs") or {}
            seen["logprobs"] += logprobs.get("token_logprobs") or [
                each["logprob"] for each in logprobs.get("content") or []
            ]
            for call in delta.get("tool_calls") or []:
                seen["arguments"] += call["function"].get("arguments") or ""
            seen["end"] = choice["finish_reason"] or seen.get("end")
    return found


def start(platform: LocalPlatform, path: str, request: dict[str, Any]) -> Stream:
    whole = {"model": REAL, "stream": True, "return_token_ids": True} | request
    whole["stream_options"] = {"include_usage": True}
    return Stream(platform.url, whole, path)


def compare(moved: Stream, whole: Stream) -> None:
    found, expected = read(moved), read(whole)
    assert found.keys() == expected.keys()
    for index, choice in expected.items():
        for name in ("text", "ids", "arguments", "end"):
            assert found[index][name] == choice[name], (index, name)
        assert len(found[index]["logprobs"]) == len(choice["logprobs"])
        for a, b in zip(found[index]["logprobs"], choice["logprobs"], strict=True):
            assert a == b or abs(a - b) < 0.01  # The first of a prompt's is None.
    assert moved.events()[-1]["usage"]["completion_tokens"] > 0
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert moved.events()[-1]["usage"][name] == whole.events()[-1]["usage"][name]


def compare_all(moved: list[Stream], whole: list[Stream]) -> None:
    """Compares what `start_all` began twice."""
    for ours, theirs in zip(moved, whole, strict=True):
        compare(ours, theirs)
    person = json.loads(read(moved[len(COMPLETIONS)])[0]["text"], strict=False)
    jsonschema.validate(person, SCHEMA)
    jsonschema.validate(json.loads(read(moved[len(COMPLETIONS) + 1])[0]["arguments"]), SCHEMA)
