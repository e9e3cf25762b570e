"""Engines on a real Ray: of another version, under load; none, some, more, fewer, by demand."""

import copy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.deployment_names import GATEWAY, LEDGER, engine_of, router_of
from serve_app.names import ModelName
from tests.integration.conftest import write_echo
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.settings import write_args
from tests.support.streams import Stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TINY, SLEEPY = ModelName("tiny"), ModelName("sleepy")
CANARY = ModelName(f"{TINY}/canary")
CPU = {"kind": "cpu", "cpus": 0.1}
AUTOSCALING = {
    "load": 0.8,
    "ttft_target_s": 1.0,
    "scale_down_after_s": 4.0,
    "sleep_after_s": 4.0,
    "wake_timeout_s": 90.0,
}
N_TRIED = 40


@pytest.fixture(scope="module")
def args(tiny_model: Path) -> dict[str, Any]:
    tiny = write_echo(tiny_model, TINY, tokens_per_s=10.0, accelerator=CPU, drain_timeout_s=60.0)
    tiny["canary"] = {"percent": 25.0, "engine": tiny["engine"] | {"max_model_len": 64}}
    sleepy = write_echo(
        tiny_model,
        SLEEPY,
        batch={"step_s": 0.2},
        max_num_seqs=4,
        accelerator=CPU,
        replicas={"min": 0, "max": 2},
        autoscaling=AUTOSCALING,
        drain_timeout_s=60.0,
    )
    gateway = SMALL["gateway"] | {"sse_keep_alive_s": 1}
    return write_args(tiny, sleepy, **SMALL | {"gateway": gateway})


@pytest.fixture(scope="module")
def platform(args: dict[str, Any]) -> Iterator[RayPlatform]:
    with RayPlatform() as platform:
        platform.deploy_and_wait(args)
        yield platform


@pytest.fixture(scope="module")
def broken(
    platform: RayPlatform, args: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[httpx.Response]]:
    """A version of `TINY` that cannot start is rolled out under load, while more is tested."""
    changed = without_canary(args)
    nowhere = tmp_path_factory.mktemp("models") / "nowhere"
    changed["models"][0]["source"] = {"kind": "local", "path": str(nowhere)}
    # What runs is looked at every two seconds.
    platform.wait_until(lambda: platform.status() == "RUNNING", 60.0, "running")
    time.sleep(3.0)
    with load(platform, TINY, n_clients=2, n_tokens=8) as answers:
        platform.deploy(changed)
        yield answers


def without_canary(args: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(args)
    del changed["models"][0]["canary"]
    changed["models"][0]["engine"]["max_num_seqs"] = 9
    return changed


def ask(platform: RayPlatform, model: ModelName, n_tokens: int) -> httpx.Response:
    body = {"model": model, "prompt": "One two", "max_tokens": n_tokens}
    return httpx.post(f"{platform.url}/v1/completions", json=body, timeout=60.0)


def stream(platform: RayPlatform, model: ModelName, n_tokens: int) -> Stream:
    body = {"model": model, "prompt": "One two", "max_tokens": n_tokens, "stream": True}
    return Stream(platform.url, body)


@contextmanager
def load(
    platform: RayPlatform, model: ModelName, n_clients: int, n_tokens: int
) -> Iterator[list[httpx.Response]]:
    """Requests all the while; the answers are complete at the end."""
    answers: list[httpx.Response] = []
    is_over = threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            answers.append(ask(platform, model, n_tokens))

    with ThreadPoolExecutor(n_clients) as pool:
        clients = [pool.submit(keep_asking) for _ in range(n_clients)]
        try:
            yield answers
        finally:
            is_over.set()
        for client in clients:
            client.result()


def check(answers: list[httpx.Response], text: str) -> None:
    assert len(answers) > 20
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {text}


def state(platform: RayPlatform, model: ModelName) -> dict[str, Any]:
    """The model's part of `/ready`; empty while nobody answers."""
    found: dict[str, Any] = platform.ready().get("models", {}).get(model, {})
    return found


def states(platform: RayPlatform, model: ModelName) -> list[str]:
    """Those of the model's engines."""
    return sorted(engine["state"] for engine in state(platform, model).get("engines", ()))


def goes_on(streams: list[Stream]) -> None:
    """Some tokens more come, and what has come is right."""
    for one in streams:
        one.wait_for_lines(len(one.lines) + 10)
        text = one.text_so_far()
        assert one.is_running
        assert ("One two" * 300).startswith(text)


def test_canary_gets_its_part_of_the_requests(platform: RayPlatform) -> None:
    assert set(platform.ready()["models"]) == {TINY, CANARY, SLEEPY}
    platform.wait_until(lambda: state(platform, CANARY)["state"] == "ready", 60.0, "ready")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(platform, TINY, 1), range(N_TRIED)))
    check(answers, "One")
    assert {answer.json()["model"] for answer in answers} == {TINY}
    tried = [answer.headers.get("x-model-version") for answer in answers]
    assert tried.count("canary") == N_TRIED / 4
    names = [m["id"] for m in httpx.get(f"{platform.url}/v1/models").json()["data"]]
    assert names == [TINY, SLEEPY]


def test_changed_engine_replaces_the_old_one_and_no_request_fails(
    platform: RayPlatform, args: dict[str, Any]
) -> None:
    others = (GATEWAY, LEDGER, router_of(TINY), router_of(SLEEPY))
    kept = {name: platform.pids(name) for name in others}
    before = platform.pids(engine_of(TINY))
    changed = without_canary(args)
    # The canary's turn comes with every fourth; it has no room for so long an answer.
    long = stream(platform, TINY, 480)
    long.wait_for_first_token()
    seen: list[list[str]] = []

    def is_seen(*wanted: str) -> bool:
        found = states(platform, TINY)
        seen.extend([found] * bool(found))
        return found == [*wanted]

    with load(platform, TINY, n_clients=4, n_tokens=8) as answers:
        platform.deploy(changed)
        platform.wait_until(lambda: is_seen("draining", "ready"), 90.0, "a new one")
        goes_on([long])
        long.leave()
        platform.wait_until(lambda: is_seen("ready"), 60.0, "the new one alone")
    check(answers, "One two" * 4)
    assert all("ready" in found for found in seen), "the new one is there before the old one goes"
    assert not platform.pids(engine_of(TINY)) & before
    assert {name: platform.pids(name) for name in others} == kept
    # The canary has left as it came.
    answers = [ask(platform, TINY, 1) for _ in range(8)]
    assert {answer.headers.get("x-model-version") for answer in answers} == {None}


@pytest.mark.usefixtures("broken")
def test_first_request_wakes_a_sleeping_model_and_others_join_it(platform: RayPlatform) -> None:
    def is_asleep() -> bool:
        is_gone = not platform.pids(engine_of(SLEEPY))
        return is_gone and state(platform, SLEEPY).get("state") == "asleep"

    platform.wait_until(is_asleep, 60.0, "asleep")
    assert platform.ready()["ready"], "a model that sleeps is served"
    streams = [stream(platform, SLEEPY, 4) for _ in range(4)]
    platform.wait_until(lambda: state(platform, SLEEPY).get("waiting") == 4, 20.0, "waiting")
    found = state(platform, SLEEPY)
    assert found["state"] == "waking"
    assert f"{AUTOSCALING['wake_timeout_s']:g} s at most" in found["detail"]
    assert {s.finish_text(90.0) for s in streams} == {"One two" * 2}
    assert all(s.n_comments for s in streams), "they are kept alive while they wait"


@pytest.mark.usefixtures("broken")
def test_load_brings_engines_and_its_end_takes_them_away_without_a_cut(
    platform: RayPlatform,
) -> None:
    with load(platform, SLEEPY, n_clients=12, n_tokens=8) as answers:
        platform.wait_until(
            lambda: states(platform, SLEEPY) == ["ready", "ready"], 90.0, "two engines"
        )
    check(answers, "One two" * 4)
    # As many as one engine can have at the `load` that is aimed at; now both have some.
    streams = [stream(platform, SLEEPY, 480) for _ in range(3)]
    for one in streams:
        one.wait_for_first_token()
    platform.wait_until(lambda: "draining" in states(platform, SLEEPY), 90.0, "one less")
    assert all(engine["running"] for engine in state(platform, SLEEPY)["engines"])
    assert state(platform, SLEEPY)["scaling"]["wanted"] == 1
    goes_on(streams)
    assert states(platform, SLEEPY) == ["draining", "ready"], "it waits for its streams"
    for one in streams:
        one.leave()
    platform.wait_until(lambda: states(platform, SLEEPY) == ["ready"], 60.0, "gone")


def test_version_that_cannot_start_is_given_up_and_the_old_one_goes_on(
    platform: RayPlatform, broken: list[httpx.Response]
) -> None:
    engines = platform.pids(engine_of(TINY))
    platform.wait_until(lambda: platform.status() == "DEPLOY_FAILED", 120.0, "given up")
    check(list(broken), "One two" * 4)
    assert platform.pids(engine_of(TINY)) == engines != set()
    found = state(platform, TINY)
    assert found["state"] == "ready"
    assert "nowhere" in found["detail"], "why it was given up"
    message = platform.application()["deployments"][engine_of(TINY)]["message"]
    assert "nowhere" in message


def test_engine_that_dies_after_a_failed_update_is_replaced_as_it_ran(
    platform: RayPlatform, args: dict[str, Any], broken: list[httpx.Response]
) -> None:
    killed = platform.kill_replica(engine_of(TINY))
    platform.wait_until(
        lambda: platform.pids(engine_of(TINY)) not in (set(), {killed}), 120.0, "replaced"
    )
    platform.wait_until(lambda: states(platform, TINY) == ["ready"], 60.0, "ready")
    n_answers = len(broken)
    platform.wait_until(lambda: len(broken) > n_answers + 4, 30.0, "answering")
    check(list(broken), "One two" * 4)
    assert "it went back to those before" in state(platform, TINY)["detail"]
    deployed = platform.application()["deployed_app_config"]["args"]["models"][0]
    assert deployed == without_canary(args)["models"][0]
    platform.wait_until(lambda: platform.status() == "RUNNING", 60.0, "whole")
