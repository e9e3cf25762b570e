"""Two real engines of the real small model; the one that serves is killed in mid answer.

float32: a token that is computed again with others, as part of a prompt, gets the same numbers up
to the last bits, and in bfloat16 those decide between likely tokens now and then.
"""

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from serve_app.config import parse_settings
from serve_app.messages import EngineId
from serve_app.names import ModelName
from tests.support.clients import ask, connect
from tests.support.platform import LocalPlatform
from tests.support.settings import write_args, write_vllm_model
from tests.support.streams import Stream

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(900)]

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


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    args = {"max_model_len": 1024, "max_num_seqs": 16, "enforce_eager": True, "dtype": "float32"}
    cpu = {"kind": "cpu", "kv_cache_gib": 1, "threads": 1}
    front_end = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}
    entry = write_vllm_model(
        args, name=REAL, accelerator=cpu, front_end=front_end, drain_timeout_s=2.0
    )
    folder = tmp_path_factory.mktemp("real")
    with LocalPlatform(
        parse_settings(write_args(entry)), folder, engines_in_processes=True, n_engines=2
    ) as found:
        wait_for_two(found)
        yield found


def wait_for_two(platform: LocalPlatform) -> None:
    def is_so() -> bool:
        return [engine["state"] for engine in platform.list_engines()].count("ready") == 2

    platform.wait_until(is_so, 300.0, "two engines")


def kill_the_busy(platform: LocalPlatform) -> None:
    busy = [EngineId(e["id"]) for e in platform.list_engines() if e["running"]]
    platform.kill_engine(busy[0])
    platform.add_engine(REAL)


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


@pytest.mark.parametrize("n_lines", [3, 40])
def test_killed_engines_answers_equal_undisturbed_ones(
    platform: LocalPlatform, n_lines: int
) -> None:
    requests = [("/v1/completions", request) for request in COMPLETIONS]
    requests += [("/v1/chat/completions", request) for request in CHATS]
    whole = [start(platform, path, request) for path, request in requests]
    for stream in whole:
        stream.finish(300.0)
    moved = [start(platform, path, request) for path, request in requests]
    for stream in moved:
        stream.wait_for_lines(n_lines)
    kill_the_busy(platform)
    for stream in moved:
        stream.finish(300.0)
    for ours, theirs in zip(moved, whole, strict=True):
        compare(ours, theirs)
    person = json.loads(read(moved[len(COMPLETIONS)])[0]["text"], strict=False)
    jsonschema.validate(person, SCHEMA)
    jsonschema.validate(json.loads(read(moved[len(COMPLETIONS) + 1])[0]["arguments"]), SCHEMA)
    wait_for_two(platform)


def test_stop_string_across_the_seam_is_honoured(platform: LocalPlatform) -> None:
    prompt = "Once upon a time there was a mule driver who"
    text = (
        connect(platform.url)
        .completions.create(model=REAL, prompt=prompt, max_tokens=60, temperature=0.0)
        .choices[0]
        .text
    )
    stop = text[len(text) // 2 : len(text) // 2 + 20]
    request = {"prompt": prompt, "stop": [stop], "max_tokens": 60, "temperature": 0.0}
    whole = start(platform, "/v1/completions", request)
    whole.finish(120.0)
    moved = start(platform, "/v1/completions", request)
    half = len(read(whole)[0]["text"]) - 12
    platform.wait_until(lambda: len(moved.text_so_far()) >= half, 60.0, "before the stop string")
    kill_the_busy(platform)
    moved.finish(120.0)
    compare(moved, whole)
    assert stop not in read(moved)[0]["text"]
    assert read(moved)[0]["end"] == "stop"
    wait_for_two(platform)


def test_requests_without_a_stream_and_without_tokens_are_answered(
    platform: LocalPlatform,
) -> None:
    client = connect(platform.url)
    begun = threading.Barrier(5)

    def complete(i: int) -> str:
        begun.wait()
        answer = client.completions.create(
            model=REAL, prompt=f"{i} plus {i} is", max_tokens=40, temperature=0.0
        )
        return str(answer.choices[0].text)

    with ThreadPoolExecutor(5) as pool:
        expected = list(pool.map(complete, range(5)))
        again = [pool.submit(complete, i) for i in range(5)]
        platform.wait_until(lambda: platform.count_running() > 0, 30.0, "running")
        kill_the_busy(platform)
        assert [answer.result() for answer in again] == expected


def test_engine_that_is_told_to_leave_hands_its_answers_over(platform: LocalPlatform) -> None:
    requests = [request | {"max_tokens": 300} for request in COMPLETIONS[:4]]
    whole = [start(platform, "/v1/completions", request) for request in requests]
    for stream in whole:
        stream.finish(300.0)
    moved = [start(platform, "/v1/completions", request) for request in requests]
    for stream in moved:
        stream.wait_for_lines(10)
    busy = [EngineId(e["id"]) for e in platform.list_engines() if e["running"]]
    process = platform.engine_processes.pop(busy[0])
    process.signal(signal.SIGTERM)
    platform.wait_until(lambda: not process.is_alive(), 30.0, "ended")
    n_lines = [len(stream.lines) for stream in moved]
    for ours, theirs in zip(moved, whole, strict=True):
        ours.finish(300.0)
        compare(ours, theirs)
    assert any(len(s.lines) > n for s, n in zip(moved, n_lines, strict=True)), "none moved"
