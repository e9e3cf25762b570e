"""Two real engines of the real small model; the one that serves is killed in mid answer."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve_app.config import parse_settings
from serve_app.messages import EngineId
from tests.support.clients import connect
from tests.support.platform import LocalPlatform
from tests.support.seams import (
    COMPLETIONS,
    REAL,
    compare,
    compare_all,
    read,
    start,
    start_all,
    write_entry,
)
from tests.support.settings import write_args

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("real")
    with LocalPlatform(
        parse_settings(write_args(write_entry())), folder, engines_in_processes=True, n_engines=2
    ) as found:
        wait_for_two(found)
        yield found


def wait_for_two(platform: LocalPlatform) -> None:
    def is_so() -> bool:
        return [engine["state"] for engine in platform.list_engines()].count("ready") == 2

    platform.wait_until(is_so, 300.0, "two engines")


def find_busy(platform: LocalPlatform) -> EngineId:
    """An engine that runs something: what gateways know of that may be a second old."""

    def busy() -> list[EngineId]:
        return [EngineId(e["id"]) for e in platform.list_engines() if e["running"]]

    platform.wait_until(lambda: bool(busy()), 10.0, "running")
    return busy()[0]


def kill_the_busy(platform: LocalPlatform) -> None:
    platform.kill_engine(find_busy(platform))
    platform.add_engine(REAL)


@pytest.mark.parametrize("n_lines", [3, 40])
def test_killed_engines_answers_equal_undisturbed_ones(
    platform: LocalPlatform, n_lines: int
) -> None:
    whole = start_all(platform)
    for stream in whole:
        stream.finish(300.0)
    moved = start_all(platform)
    for stream in moved:
        stream.wait_for_lines(n_lines)
    kill_the_busy(platform)
    for stream in moved:
        stream.finish(300.0)
    compare_all(moved, whole)
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
    process = platform.engine_processes.pop(find_busy(platform))
    process.signal(signal.SIGTERM)
    platform.wait_until(lambda: not process.is_alive(), 30.0, "ended")
    n_lines = [len(stream.lines) for stream in moved]
    for ours, theirs in zip(moved, whole, strict=True):
        ours.finish(300.0)
        compare(ours, theirs)
    assert any(len(s.lines) > n for s, n in zip(moved, n_lines, strict=True)), "none moved"
