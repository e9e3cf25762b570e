"""What happens to requests when their client, their engine or their router goes away."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.messages import EngineId
from serve_app.names import ModelName
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, connect, connect_async, post, read_error, read_events
from tests.support.platform import LocalPlatform, wait_until

TINY = ModelName("tiny")
LONG = 400
"""Tokens; with PACE far longer than any of these tests."""
PACE = 20.0


def body(stream: bool = True, **changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "One two", "max_tokens": LONG, "stream": stream} | changes


@pytest.fixture
def platform(tiny_model: Path, tmp_path: Path) -> Iterator[LocalPlatform]:
    with LocalPlatform(make_settings(write_echo(tiny_model, tokens_per_s=PACE)), tmp_path) as found:
        yield found


class Stream:
    """A stream that is read in the background."""

    def __init__(self, url: str, request: dict[str, Any], path: str = "/v1/completions") -> None:
        self.lines: list[str] = []
        self.status = 0
        self.text = ""
        self._request = (url + path, request)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for_first_token(self) -> None:
        wait_until(lambda: bool(self.lines), 20.0, "streaming")

    def finish(self, timeout_s: float = 30.0) -> list[str]:
        """The data of all events, once the stream has ended."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the stream goes on"
        return read_events("\n".join(self.lines))

    def finish_text(self) -> str:
        """The text of a completion, once the stream has ended as it should."""
        *events, last = self.finish()
        assert last == "[DONE]", events[-1]
        assert self.status == 200
        return "".join(choice["text"] for e in events for choice in json.loads(e)["choices"])

    def _read(self) -> None:
        url, request = self._request
        with httpx.stream("POST", url, json=request, timeout=60.0) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                self.lines.append(line)


def test_client_that_leaves_a_stream_is_aborted_within_a_second(platform: LocalPlatform) -> None:
    with httpx.stream("POST", f"{platform.url}/v1/completions", json=body()) as answer:
        lines = answer.iter_lines()  # Held: a dropped iterator closes the stream.
        next(lines)
        platform.wait_until(lambda: platform.count_in_engines() == 1, 5.0, "running")
    assert platform.wait_until(lambda: platform.count_in_engines() == 0, 5.0, "idle") < 1.0


def test_client_that_leaves_while_it_waits_for_an_answer_is_aborted_within_a_second(
    platform: LocalPlatform,
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{platform.url}/v1/completions", json=body(stream=False), timeout=0.5)
    assert platform.wait_until(lambda: platform.count_in_engines() == 0, 5.0, "idle") < 1.0


def test_client_that_leaves_n_choices_leaves_none_running(platform: LocalPlatform) -> None:
    with httpx.stream("POST", f"{platform.url}/v1/completions", json=body(n=3)) as answer:
        lines = answer.iter_lines()  # Held: a dropped iterator closes the stream.
        next(lines)
        platform.wait_until(lambda: platform.count_in_engines() == 3, 5.0, "running")
    assert platform.wait_until(lambda: platform.count_in_engines() == 0, 5.0, "idle") < 1.0


async def test_cancelled_task_of_the_async_client_is_aborted(platform: LocalPlatform) -> None:
    async with connect_async(platform.url) as client:
        task = asyncio.ensure_future(
            client.completions.create(model="tiny", prompt="One", max_tokens=LONG)
        )
        await asyncio.to_thread(
            platform.wait_until, lambda: platform.count_in_engines() == 1, 5.0, "running"
        )
        task.cancel()
        await asyncio.wait([task])
    took_s = await asyncio.to_thread(
        platform.wait_until, lambda: platform.count_in_engines() == 0, 5.0, "idle"
    )
    assert took_s < 1.0


def test_client_that_leaves_the_queue_leaves_no_trace(tiny_model: Path, tmp_path: Path) -> None:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=PACE), limits={"max_running_per_engine": 1}
    )
    with LocalPlatform(settings, tmp_path) as platform:
        running = Stream(platform.url, body(max_tokens=40))
        running.wait_for_first_token()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{platform.url}/v1/completions", json=body(stream=False), timeout=0.5)
        platform.wait_until(lambda: platform.count_waiting() == 0, 3.0, "no longer waiting")
        assert running.finish()[-1] == "[DONE]"
        platform.wait_until(lambda: platform.count_in_engines() == 0, 1.0, "idle")


STREAMS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "One two"},
    "/v1/chat/completions": {"messages": ask()},
    "/v1/responses": {"input": "One two", "max_output_tokens": LONG},
    "/v1/messages": {"messages": ask()},
}


def test_engine_killed_mid_stream_ends_each_stream_with_one_error(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = make_settings(write_echo(tiny_model, tokens_per_s=PACE))
    with LocalPlatform(settings, tmp_path, engines_in_processes=True) as platform:
        same = {"model": "tiny", "max_tokens": LONG, "stream": True}
        streams = {path: Stream(platform.url, same | own, path) for path, own in STREAMS.items()}
        for stream in streams.values():
            stream.wait_for_first_token()
        platform.kill_engine(EngineId("engine-1"))
        for path, stream in streams.items():
            check_ended_by_one_error(path, stream)
        platform.wait_until(lambda: not platform.is_ready(), 10.0, "seen as gone")
        for path, own in STREAMS.items():
            refused = post(platform.url, path, same | own)
            assert refused.status_code == 503, refused.text
            assert "retry-after" in refused.headers


def check_ended_by_one_error(path: str, stream: Stream) -> None:
    events = stream.finish()
    assert stream.status == 200
    parsed = [json.loads(event) for event in events if event != "[DONE]"]
    errors = [event for event in parsed if event.get("error") or event.get("type") == "error"]
    assert len(errors) == 1, (path, events[-3:])
    assert errors[0] is parsed[-1]
    assert "Traceback" not in events[-1]


def test_two_engines_share_the_load_and_one_serves_when_the_other_is_killed(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = make_settings(write_echo(tiny_model, tokens_per_s=PACE))
    with (
        LocalPlatform(settings, tmp_path, engines_in_processes=True, n_engines=2) as platform,
        ThreadPoolExecutor(4) as pool,
    ):
        platform.wait_until(lambda: count_ready(platform) == 2, 60.0, "two engines")
        request = body(stream=False, max_tokens=160)
        answers = [pool.submit(post, platform.url, "/v1/completions", request) for _ in range(4)]
        platform.wait_until(lambda: platform.count_running() == 4, 5.0, "running")
        assert [engine["running"] for engine in platform.list_engines()] == [2, 2]
        platform.kill_engine(EngineId("engine-1"))
        # A kill is noticed by the connection's end, at once.
        after = post(platform.url, "/v1/completions", body(stream=False, max_tokens=1))
        assert after.status_code in (200, 503)
        statuses = sorted(answer.result().status_code for answer in answers)
        assert statuses == [200, 200, 503, 503]
        for answer in answers:
            if answer.result().status_code == 503:
                assert "retry-after" in answer.result().headers
                assert "engine" in read_error(answer.result())["message"]
        for _ in range(4):
            connect(platform.url).completions.create(model="tiny", prompt="One", max_tokens=1)
        platform.wait_until(lambda: len(platform.list_engines()) == 1, 10.0, "one engine")
        assert platform.is_ready()


def count_ready(platform: LocalPlatform) -> int:
    return sum(engine["state"] == "ready" for engine in platform.list_engines())


def test_replaced_router_keeps_running_streams_and_serves_the_waiting(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=PACE), limits={"max_running_per_engine": 2}
    )
    with LocalPlatform(settings, tmp_path, n_gateways=2) as platform:
        streams = [Stream(url, body(max_tokens=60)) for url in platform.urls]
        for stream in streams:
            stream.wait_for_first_token()
        waiting = [Stream(url, body(max_tokens=6)) for url in platform.urls]
        platform.wait_until(lambda: platform.count_waiting() == 2, 5.0, "waiting")
        platform.replace_router(TINY)
        assert [stream.finish_text() for stream in streams] == ["One two" * 30] * 2
        assert [stream.finish_text() for stream in waiting] == ["One two" * 3] * 2
        # The new router counts what ran before it came: room is as it should be.
        assert connect(platform.url).completions.create(model="tiny", prompt="hi", max_tokens=1)


def test_queue_is_bounded_and_refuses_with_503(tiny_model: Path, tmp_path: Path) -> None:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=PACE),
        limits={"max_running_per_engine": 1, "max_waiting": 2, "retry_after_s": 3.0},
    )
    with LocalPlatform(settings, tmp_path) as platform:
        running = Stream(platform.url, body(max_tokens=160))
        running.wait_for_first_token()
        waiting = [Stream(platform.url, body(max_tokens=3)) for _ in range(2)]
        platform.wait_until(lambda: platform.count_waiting() == 2, 5.0, "waiting")
        for stream in (False, True):
            refused = post(platform.url, "/v1/completions", body(stream=stream))
            assert refused.status_code == 503, refused.text
            assert refused.headers["retry-after"] == "3"
            error = read_error(refused)
            assert "max_waiting" in error["message"]
            assert error["type"] == "overloaded_error"
        assert all(s.finish()[-1] == "[DONE]" for s in [running, *waiting])


def test_request_that_waits_too_long_is_503(tiny_model: Path, tmp_path: Path) -> None:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=PACE),
        limits={"max_running_per_engine": 1, "max_wait_s": 1.0},
    )
    with LocalPlatform(settings, tmp_path) as platform:
        running = Stream(platform.url, body(max_tokens=100))
        running.wait_for_first_token()
        refused = post(platform.url, "/v1/completions", body(stream=False))
        assert refused.status_code == 503
        assert "max_wait_s" in read_error(refused)["message"]
        assert running.finish()[-1] == "[DONE]"


def test_engine_that_stops_finishes_what_it_runs(platform: LocalPlatform) -> None:
    stream = Stream(platform.url, body(max_tokens=40))
    stream.wait_for_first_token()
    platform.stop_engine(EngineId("engine-1"))
    assert stream.finish_text() == "One two" * 20
    platform.wait_until(lambda: not platform.is_ready(), 5.0, "seen as gone")


def test_model_removed_from_the_settings_finishes_its_streams(
    tiny_model: Path, tmp_path: Path
) -> None:
    tiny, other = write_echo(tiny_model, tokens_per_s=PACE), write_echo(tiny_model, "other")
    with LocalPlatform(make_settings(tiny, other), tmp_path) as platform:
        stream = Stream(platform.url, body(max_tokens=40))
        stream.wait_for_first_token()
        platform.configure(make_settings(other))
        gone = post(platform.url, "/v1/completions", body())
        assert gone.status_code == 404
        assert "Models served here: other" in read_error(gone)["message"]
        assert stream.finish()[-1] == "[DONE]"
