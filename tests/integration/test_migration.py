"""Engines die, hang and leave; requests go on elsewhere, and clients see a pause at most."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.keys import hash_key
from serve_app.messages import EngineId
from serve_app.names import ModelName
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, connect, post, read_error
from tests.support.platform import LocalPlatform, wait_until
from tests.support.streams import Stream

TINY = ModelName("tiny")
PACE = 20.0
_KEY = "key-of-team-a"
_HEADERS: dict[str, Any] = {"authorization": f"Bearer {_KEY}"}


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "One two", "max_tokens": 60, "stream": True} | changes


@contextmanager
def platform_of(
    tiny_model: Path,
    folder: Path,
    n_engines: int = 2,
    in_processes: bool = True,
    routers_in_processes: bool = False,
    model: dict[str, Any] | None = None,
    **sections: Any,
) -> Iterator[LocalPlatform]:
    entry = write_echo(tiny_model, **({"tokens_per_s": PACE} | (model or {})))
    with LocalPlatform(
        make_settings(entry, **sections),
        folder,
        engines_in_processes=in_processes,
        routers_in_processes=routers_in_processes,
        n_engines=n_engines,
    ) as platform:
        platform.wait_until(lambda: count_ready(platform) == n_engines, 60.0, "all engines")
        yield platform


def count_ready(platform: LocalPlatform) -> int:
    return sum(engine["state"] == "ready" for engine in platform.list_engines())


def find_busy(platform: LocalPlatform) -> EngineId:
    """The engine that runs something, as soon as one is known to."""

    def busy() -> list[EngineId]:
        return [EngineId(e["id"]) for e in platform.list_engines() if e["running"]]

    platform.wait_until(lambda: len(busy()) == 1, 10.0, "one running")
    return busy()[0]


STREAMS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "One two", "stream_options": {"include_usage": True}},
    "/v1/chat/completions": {"messages": ask(), "stream_options": {"include_usage": True}},
    "/v1/responses": {"input": "One two", "max_output_tokens": 60},
    "/v1/messages": {"messages": ask()},
}


def strip(line: str) -> Any:
    """An event without what differs between two answers to the same question."""
    if not line.startswith("data: {"):
        return line
    event = json.loads(line.removeprefix("data: "))
    changing = {"id", "created", "created_at", "completed_at", "item_id", "system_fingerprint"}
    changing.add("sequence_number")

    def drop(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: drop(each) for key, each in value.items() if key not in changing}
        return [drop(each) for each in value] if isinstance(value, list) else value

    return drop(event)


def join_deltas(lines: list[str]) -> list[tuple[Any, str]]:
    """A stream's events with their texts, those that only go on with a text as one.

    A gateway that is late says two tokens in one event.
    """
    events: list[tuple[Any, str]] = []
    for line in lines:
        if not line.startswith("data: "):
            continue
        text: list[str] = []
        event = blank_deltas(strip(line), text)
        if events and events[-1][0] == event and text:
            events[-1] = (event, events[-1][1] + "".join(text))
        else:
            events.append((event, "".join(text)))
    return events


def blank_deltas(value: Any, text: list[str]) -> Any:
    """The event without the text that it adds, which goes to `text`."""
    if isinstance(value, list):
        return [blank_deltas(each, text) for each in value]
    if not isinstance(value, dict):
        return value
    is_delta = {"finish_reason", "logprobs"} <= value.keys() or "delta" in str(value.get("type"))
    found = dict(value)
    for key, each in value.items():
        if isinstance(each, str) and (key in ("content", "delta") or (is_delta and key == "text")):
            text.append(each)
            found[key] = ""
        else:
            found[key] = blank_deltas(each, text)
    return found


def test_engine_killed_mid_stream_changes_no_event_of_any_api(
    tiny_model: Path, tmp_path: Path
) -> None:
    same = {"model": "tiny", "max_tokens": 60, "stream": True}
    with platform_of(tiny_model, tmp_path) as platform:
        whole = [Stream(platform.url, same | own, path) for path, own in STREAMS.items()]
        expected = [join_deltas(stream.finish() and stream.lines) for stream in whole]
        streams = [Stream(platform.url, same | own, path) for path, own in STREAMS.items()]
        for stream in streams:
            stream.wait_for_lines(20)
        platform.kill_engine(EngineId("engine-1"))
        found = [join_deltas(stream.finish() and stream.lines) for stream in streams]
        assert found == expected
        assert all(stream.status == 200 for stream in streams)
        assert max(stream.longest_gap_s() for stream in streams) < 1.0


@pytest.mark.slow
def test_request_goes_on_after_each_of_several_deaths(tiny_model: Path, tmp_path: Path) -> None:
    with platform_of(tiny_model, tmp_path, n_engines=4) as platform:
        stream = Stream(platform.url, body(max_tokens=200, n=2, logprobs=1))
        for i in range(1, 4):
            stream.wait_for_lines(len(stream.lines) + 20)
            platform.kill_engine(EngineId(f"engine-{i}"))
        events = stream.events()
    for index in range(2):
        choices = [c for e in events for c in e["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in choices) == "One two" * 100
        assert sum(len(c["logprobs"]["tokens"]) for c in choices if c["logprobs"]) == 200
        assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["length"]


def test_requests_of_the_last_engine_wait_for_the_next_one(
    tiny_model: Path, tmp_path: Path
) -> None:
    with platform_of(tiny_model, tmp_path, n_engines=1) as platform, ThreadPoolExecutor(1) as pool:
        streams = [Stream(platform.url, body()) for _ in range(3)]
        for stream in streams:
            stream.wait_for_lines(5)
        answer = pool.submit(post, platform.url, "/v1/completions", body(stream=False))
        time.sleep(0.3)
        platform.kill_engine(EngineId("engine-1"))
        platform.wait_until(lambda: platform.count_waiting() == 4, 5.0, "waiting")
        platform.add_engine(TINY)
        assert [stream.finish_text() for stream in streams] == ["One two" * 30] * 3
        assert answer.result().json()["choices"][0]["text"] == "One two" * 30


@pytest.mark.slow
def test_stop_string_across_the_seam_ends_the_answer(tiny_model: Path, tmp_path: Path) -> None:
    # One token a word: the string begins on the engine that dies and ends on the next.
    words = " ".join(f"w{i}" for i in range(40))
    with platform_of(tiny_model, tmp_path, model={"tokens_per_s": 10.0}) as platform:
        request = body(prompt=words, max_tokens=300, stop=["w20 w21 w22"])
        expected = connect(platform.url).completions.create(**(request | {"stream": False}))
        stream = Stream(platform.url, request)
        # As much text as the stop string is long is held back.
        wait_until(lambda: "w17 " in stream.text_so_far(), 60.0, "near the stop string")
        platform.kill_engine(find_busy(platform))
        text = stream.finish_text()
        assert text == expected.choices[0].text
        assert text.endswith("w19 ")
        assert text.count("w19") == 1


def test_usage_of_a_moved_request_is_counted_and_recorded_once(
    tiny_model: Path, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "auth": {"kind": "keys"},
        "tenants": [{"id": "team-a", "keys": [{"hash": hash_key(_KEY)}]}],
        "store": {"state_dir": str(tmp_path / "state"), "usage_batch_s": 0.05},
    }
    with platform_of(tiny_model, tmp_path, **sections) as platform:
        options = {"include_usage": True}
        streams = [Stream(platform.url, body(stream_options=options), **_HEADERS) for _ in range(4)]
        for stream in streams:
            stream.wait_for_lines(10)
        platform.kill_engine(EngineId("engine-1"))
        usages = [stream.events()[-1]["usage"] for stream in streams]
        assert [usage["completion_tokens"] for usage in usages] == [60] * 4

        def rows() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = httpx.get(
                f"{platform.url}/v1/usage", headers=_HEADERS, timeout=10.0
            ).json()["data"]
            return found

        wait_until(lambda: sum(row["requests"] for row in rows()) == 4, 10.0, "recorded")
        assert sum(row["completion_tokens"] for row in rows()) == 240
        assert sum(row["prompt_tokens"] for row in rows()) == sum(
            usage["prompt_tokens"] for usage in usages
        )


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_requests_of_a_stopped_process_move_and_its_late_words_are_ignored(
    tiny_model: Path, tmp_path: Path
) -> None:
    with platform_of(tiny_model, tmp_path) as platform:
        stream = Stream(platform.url, body(max_tokens=300))
        stream.wait_for_lines(10)
        engine = platform.engine_processes[find_busy(platform)]
        engine.signal(signal.SIGSTOP)
        # Nobody can tell at once that a process has stopped: it is silent, and that takes a while.
        platform.wait_until(lambda: count_ready(platform) == 1, 15.0, "seen as silent")
        at_the_seam = len(stream.lines)
        stream.wait_for_lines(at_the_seam + 10)
        engine.signal(signal.SIGCONT)
        platform.wait_until(lambda: count_ready(platform) == 2, 15.0, "back")
        assert stream.finish_text() == "One two" * 150
        assert stream.longest_gap_s() < 10.0


def test_engine_whose_core_hangs_ends_and_its_requests_move(
    tiny_model: Path, tmp_path: Path
) -> None:
    with platform_of(tiny_model, tmp_path, model={"hang_timeout_s": 1.5}) as platform:
        stream = Stream(platform.url, body())
        stream.wait_for_lines(10)
        engine = platform.engine_processes[find_busy(platform)]
        # Its process goes on to answer and to report: only that no step ends tells.
        engine.signal(signal.SIGUSR1)
        assert stream.finish_text() == "One two" * 30
        assert 1.0 < stream.longest_gap_s() < 8.0
        platform.wait_until(lambda: not engine.is_alive(), 10.0, "ended")
        assert count_ready(platform) == 1


def test_engine_that_leaves_moves_what_cannot_end_in_time(tiny_model: Path, tmp_path: Path) -> None:
    model = {"drain_timeout_s": 3.0}
    with platform_of(tiny_model, tmp_path, in_processes=False, model=model) as platform:
        streams = [Stream(platform.url, body(max_tokens=300)) for _ in range(4)]
        for stream in streams:
            stream.wait_for_lines(5)
        short = Stream(platform.url, body(max_tokens=10))
        started_s = time.monotonic()
        platform.stop_engine(EngineId("engine-1"))
        assert time.monotonic() - started_s < 5.0
        assert short.finish_text() == "One two" * 5
        assert [stream.finish_text() for stream in streams] == ["One two" * 150] * 4
        assert max(stream.longest_gap_s() for stream in streams) < 0.8


def test_engines_that_were_dead_already_make_no_request_a_suspect(
    tiny_model: Path, tmp_path: Path
) -> None:
    limits = {"max_engine_deaths_in_a_row": 2}
    with platform_of(tiny_model, tmp_path, n_engines=4, limits=limits) as platform:
        streams = [Stream(platform.url, body()) for _ in range(4)]
        for stream in streams:
            stream.wait_for_lines(5)
        for engine_id in list(platform.engine_processes):
            platform.kill_engine(engine_id)
        # Nobody knows yet that all are dead: each request is sent to one after the other.
        platform.add_engine(TINY)
        assert [stream.finish_text() for stream in streams] == ["One two" * 30] * 4


@pytest.mark.slow
def test_request_whose_engines_die_one_by_one_is_stopped_and_others_are_not(
    tiny_model: Path, tmp_path: Path
) -> None:
    # A prompt of so many tokens keeps an engine busy for long before it gives one.
    slow = {"tokens_per_s": None, "batch": {"step_s": 0.02, "per_prompt_token_s": 0.05}}
    with (
        platform_of(tiny_model, tmp_path, n_engines=3, model=slow) as platform,
        ThreadPoolExecutor(1) as pool,
    ):
        bad = pool.submit(
            post, platform.url, "/v1/completions", body(stream=False, prompt="word " * 400)
        )
        for _ in range(3):
            platform.kill_engine(find_busy(platform))
            platform.wait_until(
                lambda: count_ready(platform) == len(platform.engine_processes), 10.0, "noticed"
            )
        answer = bad.result()
        assert answer.status_code == 500, answer.text
        assert "3 engines stopped" in read_error(answer)["message"]
        assert read_error(answer)["code"] == "engines_stopped"
        platform.add_engine(TINY)
        platform.wait_until(lambda: count_ready(platform) == 1, 30.0, "a new one")
        good = connect(platform.url).completions.create(model="tiny", prompt="One", max_tokens=2)
        assert good.usage is not None
        assert good.usage.completion_tokens == 2


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_router_that_dies_while_requests_wait_to_go_on_costs_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    with platform_of(tiny_model, tmp_path, n_engines=1, routers_in_processes=True) as platform:
        streams = [Stream(platform.url, body()) for _ in range(3)]
        for stream in streams:
            stream.wait_for_lines(5)
        platform.kill_engine(EngineId("engine-1"))
        platform.wait_until(lambda: platform.count_waiting() == 3, 5.0, "waiting")
        time.sleep(0.3)  # The router writes its state down ten times a second.
        platform.kill_router(TINY)
        platform.start_router(TINY)
        platform.add_engine(TINY)
        assert [stream.finish_text() for stream in streams] == ["One two" * 30] * 3
