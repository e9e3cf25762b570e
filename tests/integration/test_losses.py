"""What happens to requests when their client or their router goes away, or nobody has room."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.messages import EngineId
from serve_app.names import ModelName
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import connect, connect_async, post, read_error
from tests.support.platform import LocalPlatform
from tests.support.streams import Stream

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
