"""Engines come and go with demand, on a real Ray: none, some, more, fewer."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serve_app.deployment_names import engine_of
from serve_app.names import ModelName
from tests.integration.conftest import write_echo
from tests.support.clients import connect
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.settings import write_args
from tests.support.streams import Stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TINY = ModelName("tiny")
STEP_S = 0.05
AUTOSCALING = {
    "ttft_target_s": 1.0,
    "scale_down_after_s": 4.0,
    "sleep_after_s": 4.0,
    "wake_timeout_s": 90.0,
}


@pytest.fixture(scope="module")
def platform(tiny_model: Path) -> Iterator[RayPlatform]:
    model = write_echo(
        tiny_model,
        TINY,
        batch={"step_s": STEP_S},
        max_num_seqs=2,
        accelerator={"kind": "cpu", "cpus": 0.1},
        replicas={"min": 0, "max": 3},
        autoscaling=AUTOSCALING,
        drain_timeout_s=60.0,
    )
    gateway = SMALL["gateway"] | {"sse_keep_alive_s": 1}
    with RayPlatform() as platform:
        platform.deploy_and_wait(write_args(model, **SMALL | {"gateway": gateway}))
        yield platform


def state(platform: RayPlatform) -> dict[str, Any]:
    """The model's part of `/ready`; empty while nobody answers."""
    found: dict[str, Any] = platform.ready().get("models", {}).get(TINY, {})
    return found


def is_asleep(platform: RayPlatform) -> bool:
    return state(platform).get("state") == "asleep" and not platform.pids(engine_of(TINY))


def say(platform: RayPlatform, n_tokens: int) -> str:
    answer = connect(platform.url).completions.create(
        model=TINY, prompt="One two", max_tokens=n_tokens
    )
    return str(answer.choices[0].text)


def test_first_request_wakes_a_sleeping_model_and_others_join_it(platform: RayPlatform) -> None:
    platform.wait_until(lambda: is_asleep(platform), 60.0, "asleep")
    assert platform.ready()["ready"], "a model that sleeps is served"
    request = {"model": TINY, "prompt": "One two", "max_tokens": 4, "stream": True}
    started_s = time.monotonic()
    streams = [Stream(platform.url, request) for _ in range(4)]
    platform.wait_until(lambda: state(platform).get("waiting") == 4, 20.0, "waiting")
    assert state(platform)["state"] == "waking"
    assert f"{AUTOSCALING['wake_timeout_s']:g} s at most" in state(platform)["detail"]
    assert {stream.finish_text() for stream in streams} == {"One two" * 2}
    print(f"awake and answered after {time.monotonic() - started_s:.1f} s")
    assert all(stream.n_comments for stream in streams), "they are kept alive while they wait"


def test_load_brings_engines_and_its_end_takes_them_away_without_a_cut(
    platform: RayPlatform,
) -> None:
    is_over = threading.Event()
    answers: list[str] = []

    def load() -> None:
        while not is_over.is_set():
            answers.append(say(platform, 40))

    with ThreadPoolExecutor(10) as pool:
        loads = [pool.submit(load) for _ in range(10)]
        platform.wait_until(lambda: len(platform.pids(engine_of(TINY))) == 3, 90.0, "three engines")
        request = {"model": TINY, "prompt": "One two", "max_tokens": 400, "stream": True}
        streams = [Stream(platform.url, request) for _ in range(6)]
        for stream in streams:
            stream.wait_for_first_token()
        is_over.set()
        for done in loads:
            done.result()
    # Six of them are on three engines; at least one is on an engine that is to go.
    platform.wait_until(lambda: state(platform)["scaling"]["wanted"] < 3, 60.0, "fewer wanted")
    assert {stream.finish_text() for stream in streams} == {"One two" * 200}
    assert set(answers) == {"One two" * 20}
    platform.wait_until(lambda: is_asleep(platform), 60.0, "asleep again")
