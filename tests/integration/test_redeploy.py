"""`serve deploy` on a real Ray: a change restarts what it concerns and nothing else."""

import copy
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serve_app.deployment_names import GATEWAY, LEDGER, engine_of, router_of
from serve_app.names import ModelName
from tests.integration.conftest import write_echo
from tests.support.clients import connect
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.settings import write_args

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CALM, BUSY = ModelName("calm"), ModelName("team/busy model".replace(" ", "-"))
CPU = {"kind": "cpu", "cpus": 0.1}
OTHERS = (GATEWAY, LEDGER, router_of(CALM), router_of(BUSY), engine_of(CALM))


@pytest.fixture(scope="module")
def args(tiny_model: Path) -> dict[str, Any]:
    calm = write_echo(tiny_model, CALM, tokens_per_s=10.0, accelerator=CPU, drain_timeout_s=5.0)
    busy = write_echo(tiny_model, BUSY, accelerator=CPU, drain_timeout_s=5.0)
    return write_args(calm, busy, **SMALL)


@pytest.fixture(scope="module")
def platform(args: dict[str, Any]) -> Iterator[RayPlatform]:
    with RayPlatform() as found:
        found.deploy_and_wait(args)
        yield found


@pytest.fixture
def fresh(args: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(args)


class LongStream:
    """A stream on the calm model that runs while something else is done to the platform."""

    def __init__(self, platform: RayPlatform, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.text = ""
        self._client = connect(platform.url)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        platform.wait_until(lambda: bool(self.text), 20.0, "streaming")

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def finish(self) -> str:
        self._thread.join(120.0)
        return self.text

    def _read(self) -> None:
        for chunk in self._client.completions.create(
            model=CALM, prompt="One two", max_tokens=self.n_tokens, stream=True
        ):
            self.text += chunk.choices[0].text


def say(platform: RayPlatform, model: str) -> str:
    answer = connect(platform.url).completions.create(
        model=model, prompt="One two three", max_tokens=3
    )
    return str(answer.choices[0].text)


def test_each_model_answers_to_its_name(platform: RayPlatform) -> None:
    assert say(platform, CALM) == say(platform, BUSY) == "One two three"
    assert {card.id for card in connect(platform.url).models.list()} == {CALM, BUSY}


def test_clients_that_leave_before_their_answer_are_noticed_behind_the_proxy(
    platform: RayPlatform,
) -> None:
    request = {"model": CALM, "prompt": "One two", "max_tokens": 400}
    for _ in range(6):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{platform.url}/v1/completions", json=request, timeout=0.5)
    # `/ready` is at most a second behind the engine.
    time.sleep(2.0)
    assert [engine["running"] for engine in platform.ready()["models"][CALM]["engines"]] == [0]


def test_changed_limit_restarts_nothing_and_outlives_the_ledger(
    platform: RayPlatform, fresh: dict[str, Any]
) -> None:
    def complete() -> httpx.Response:
        body = {"model": BUSY, "prompt": "One two", "max_tokens": 1}
        return httpx.post(f"{platform.url}/v1/completions", json=body, timeout=60.0)

    platform.deploy_and_wait(fresh)
    names = (*OTHERS, engine_of(BUSY))
    before = {name: platform.pids(name) for name in names}
    stream = LongStream(platform, n_tokens=200)
    fresh["tenants"] = [{"id": "anonymous", "budgets": {"tokens_per_day": 30}}]
    platform.deploy_and_wait(fresh)
    platform.wait_until(lambda: complete().status_code == 429, 30.0, "refused")
    killed = platform.kill_replica(LEDGER)
    platform.wait_until(lambda: platform.pids(LEDGER) not in (set(), {killed}), 60.0, "replaced")
    platform.wait_until(lambda: complete().status_code != 503, 60.0, "answering")
    assert complete().status_code == 429
    assert stream.finish() == "One two" * 100
    del fresh["tenants"]
    platform.deploy_and_wait(fresh)
    platform.wait_until(lambda: complete().is_success, 10.0, "unlimited again")
    for name in set(names) - {LEDGER}:
        assert platform.pids(name) == before[name], name


def test_invalid_file_leaves_the_running_application_as_it_was(
    platform: RayPlatform, fresh: dict[str, Any]
) -> None:
    names = (*OTHERS, engine_of(BUSY))
    before = {name: platform.pids(name) for name in names}
    fresh["models"][1]["engine"]["max_num_seqs"] = "many"
    platform.deploy(fresh)
    platform.wait_until(lambda: platform.status() == "DEPLOY_FAILED", 60.0, "refused")
    message = platform.application()["message"]
    assert "models[1].engine.max_num_seqs" in message
    assert '"many"' in message
    # Serve lists no replicas of an application that it refused; they run on.
    assert all(psutil.pid_exists(pid) for pids in before.values() for pid in pids)
    assert all(before.values())
    assert say(platform, CALM) == say(platform, BUSY) == "One two three"


def test_more_replicas_start_beside_those_that_run(
    platform: RayPlatform, fresh: dict[str, Any]
) -> None:
    platform.deploy_and_wait(fresh)
    before = {name: platform.pids(name) for name in (*OTHERS, engine_of(BUSY))}
    fresh["models"][0]["replicas"] = {"min": 2, "max": 2}
    platform.deploy_and_wait(fresh)
    platform.wait_until(lambda: len(platform.pids(engine_of(CALM))) == 2, 120.0, "two engines")
    after = {name: platform.pids(name) for name in (*OTHERS, engine_of(BUSY))}
    assert before[engine_of(CALM)] < after[engine_of(CALM)]
    for name in set(before) - {engine_of(CALM)}:
        assert after[name] == before[name], name
    platform.wait_until(
        lambda: len(platform.ready()["models"][CALM]["engines"]) == 2, 30.0, "known to the router"
    )


def test_killed_engine_is_replaced_without_a_hand(platform: RayPlatform) -> None:
    killed = platform.kill_replica(engine_of(BUSY))
    platform.wait_until(lambda: not platform.is_ready(), 20.0, "seen as gone")
    platform.wait_until(platform.is_ready, 120.0, "ready again")
    assert killed not in platform.pids(engine_of(BUSY))
    assert say(platform, BUSY) == "One two three"


def test_killed_router_is_replaced_and_streams_go_on(platform: RayPlatform) -> None:
    stream = LongStream(platform, n_tokens=200)
    killed = platform.kill_replica(router_of(CALM))
    assert stream.finish() == "One two" * 100
    platform.wait_until(
        lambda: platform.pids(router_of(CALM)) not in (set(), {killed}), 60.0, "replaced"
    )
    assert say(platform, CALM) == "One two three"
