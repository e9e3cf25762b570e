"""Processes of the platform die or leave on a real Ray, under load. Each test leaves it whole.

Three minutes on a quiet machine, so it has a command of its own: `make chaos-deaths`.

Engines, routers and ledgers that die there are in tests/integration/test_redeploy.py, too.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.deployment_names import engine_of
from tests.chaos.deaths import (
    MODEL,
    N_ENGINES,
    Deaths,
    deaths_under_load,
    write_settings,
)
from tests.support.echo_load import check_echo, make_request
from tests.support.ray_platform import RayPlatform
from tests.support.streams import Stream
from tests.support.tiny_model import make_tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.environ.get("ARRIERO_DEATHS"), reason="make chaos-deaths"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

_LONG = 900
"""Tokens; 18 s at the echo engine's pace."""
ENGINE = engine_of(MODEL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="module")
def deaths(folder: Path) -> Iterator[Deaths]:
    with deaths_under_load(folder) as found:
        yield found


@pytest.fixture
def platform(deaths: Deaths) -> RayPlatform:
    return deaths.platform


@pytest.fixture(scope="module")
def args(folder: Path) -> dict[str, Any]:
    return write_settings(make_tiny_model(folder / "model"))


def scale(platform: RayPlatform, args: dict[str, Any], n_engines: int) -> None:
    args["models"][0]["replicas"] = {"min": n_engines, "max": n_engines}
    platform.deploy_and_wait(args)
    platform.wait_until(lambda: len(platform.pids(ENGINE)) == n_engines, 120.0, "scaled")
    platform.wait_until(lambda: count_ready(platform) == n_engines, 60.0, "known to the router")


def count_ready(platform: RayPlatform) -> int:
    engines = platform.ready()["models"][MODEL]["engines"]
    return sum(engine["state"] == "ready" for engine in engines)


def count_engines(platform: RayPlatform) -> int:
    return len(platform.ready()["models"][MODEL]["engines"])


def start_long_streams(platform: RayPlatform, n_streams: int) -> list[Stream]:
    """Streams that run on every engine, as requests go to the one that has least."""
    request = make_request(MODEL, "One two three", _LONG) | {"return_token_ids": True}
    streams = [Stream(platform.url, request) for _ in range(n_streams)]
    for stream in streams:
        stream.wait_for_lines(10)
    return streams


def check_whole(streams: list[Stream], longest_gap_s: float) -> None:
    for stream in streams:
        stream.finish(60.0)
        check_echo(stream.events(), _LONG)
        assert stream.longest_gap_s() < longest_gap_s


@pytest.mark.parametrize("kind", ["controller", "gcs"])
def test_death_that_is_on_no_requests_way_costs_nothing(deaths: Deaths, kind: str) -> None:
    cost = deaths.suffer(kind)
    assert cost.errors == ()
    assert cost.n_answers > 0


@pytest.mark.parametrize("kind", ["proxy", "proxy_manager", "gateway"])
def test_death_breaks_connections_and_then_all_is_served_again(deaths: Deaths, kind: str) -> None:
    assert deaths.suffer(kind).n_answers > 0


def test_engine_that_gets_a_sigterm_costs_no_request(deaths: Deaths, platform: RayPlatform) -> None:
    streams = start_long_streams(platform, 4)
    process = psutil.Process(min(platform.pids(ENGINE)))
    process.send_signal(signal.SIGTERM)
    check_whole(streams, longest_gap_s=5.0)
    platform.wait_until(lambda: not process.is_running(), 60.0, "ended")
    platform.wait_until(lambda: count_ready(platform) == N_ENGINES, 120.0, "replaced")


def test_scale_down_moves_what_cannot_end_in_time(
    deaths: Deaths, platform: RayPlatform, args: dict[str, Any]
) -> None:
    before = platform.pids(ENGINE)
    streams = start_long_streams(platform, 4)
    scale(platform, args, 1)
    check_whole(streams, longest_gap_s=5.0)
    assert len(before - platform.pids(ENGINE)) == N_ENGINES - 1
    scale(platform, args, N_ENGINES)


def test_no_answer_was_wrong_but_those_that_broke(deaths: Deaths) -> None:
    """The load's own streams, over all that has happened above."""
    wrong = [error for error in deaths.errors if "tokens of" in error]
    assert wrong == []
