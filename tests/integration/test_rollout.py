"""Another version of a model under load, on a real Ray: rolled out, given up, tried on a part."""

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.deployment_names import engine_of
from serve_app.names import ModelName
from tests.integration.conftest import write_echo
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.settings import write_args
from tests.support.streams import Stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TINY = ModelName("tiny")
ENGINES = engine_of(TINY)
LONG = {"model": TINY, "prompt": "One two", "max_tokens": 400, "stream": True}


@pytest.fixture(scope="module")
def args(tiny_model: Path) -> dict[str, Any]:
    accelerator = {"kind": "cpu", "cpus": 0.1}
    model = write_echo(
        tiny_model, TINY, tokens_per_s=20.0, accelerator=accelerator, drain_timeout_s=60.0
    )
    return write_args(model, **SMALL)


@pytest.fixture(scope="module")
def platform(args: dict[str, Any]) -> Iterator[RayPlatform]:
    with RayPlatform() as platform:
        platform.deploy_and_wait(args)
        yield platform


@pytest.fixture
def fresh(args: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(args)


@contextmanager
def load(platform: RayPlatform, n_clients: int = 4) -> Iterator[list[httpx.Response]]:
    """Requests all the while; the answers are complete at the end."""
    answers: list[httpx.Response] = []
    is_over = threading.Event()
    body = {"model": TINY, "prompt": "One two", "max_tokens": 8}

    def ask() -> None:
        while not is_over.is_set():
            answers.append(httpx.post(f"{platform.url}/v1/completions", json=body, timeout=60.0))

    with ThreadPoolExecutor(n_clients) as pool:
        clients = [pool.submit(ask) for _ in range(n_clients)]
        try:
            yield answers
        finally:
            is_over.set()
        for client in clients:
            client.result()


def check(answers: list[httpx.Response]) -> None:
    assert len(answers) > 20
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {"One two" * 4}


def test_changed_engine_replaces_the_old_one_and_no_request_fails(
    platform: RayPlatform, fresh: dict[str, Any]
) -> None:
    before = platform.pids(ENGINES)
    stream = Stream(platform.url, LONG)
    stream.wait_for_first_token()
    n_engines: set[int] = set()
    with load(platform) as answers:
        fresh["models"][0]["engine"]["max_num_seqs"] = 9
        platform.deploy(fresh)

        def is_replaced() -> bool:
            n_engines.add(sum(e["state"] == "ready" for e in _engines(platform)))
            pids = platform.pids(ENGINES)
            return bool(pids) and not pids & before

        platform.wait_until(is_replaced, 90.0, "replaced")
    check(answers)
    assert 0 not in n_engines, "the new one is there before the old one goes"
    assert stream.finish_text() == "One two" * 200


def test_version_that_cannot_start_is_given_up_and_the_old_one_goes_on(
    platform: RayPlatform, fresh: dict[str, Any], tmp_path: Path
) -> None:
    platform.wait_until(lambda: platform.status() == "RUNNING", 90.0, "running")
    before = platform.pids(ENGINES)
    with load(platform) as answers:
        fresh["models"][0]["source"] = {"kind": "local", "path": str(tmp_path / "nowhere")}
        platform.deploy(fresh)
        platform.wait_until(lambda: platform.status() == "DEPLOY_FAILED", 120.0, "given up")
    check(answers)
    assert platform.pids(ENGINES) == before
    found = platform.ready()["models"][TINY]
    assert found["state"] == "ready"
    assert "nowhere" in found["detail"], "why it was given up"
    assert "nowhere" in platform.application()["deployments"][ENGINES]["message"]


def test_canary_gets_its_part_of_the_requests(platform: RayPlatform, fresh: dict[str, Any]) -> None:
    fresh["models"][0]["engine"]["max_num_seqs"] = 9
    fresh["models"][0]["canary"] = {
        "percent": 25.0,
        "engine": fresh["models"][0]["engine"] | {"max_model_len": 64},
    }
    platform.deploy_and_wait(fresh)
    shown = platform.ready()["models"]
    platform.wait_until(
        lambda: platform.ready()["models"][f"{TINY}/canary"]["state"] == "ready", 60.0, "ready"
    )
    assert set(shown) == {TINY, f"{TINY}/canary"}
    body = {"model": TINY, "prompt": "One two", "max_tokens": 2}
    answers = [httpx.post(f"{platform.url}/v1/completions", json=body) for _ in range(40)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"] for answer in answers} == {TINY}
    tried = [answer.headers.get("x-model-version") for answer in answers]
    assert tried.count("canary") == 10
    names = [m["id"] for m in httpx.get(f"{platform.url}/v1/models").json()["data"]]
    assert names == [TINY]
    # It leaves as it came.
    del fresh["models"][0]["canary"]
    platform.deploy_and_wait(fresh)
    answers = [httpx.post(f"{platform.url}/v1/completions", json=body) for _ in range(8)]
    assert {answer.headers.get("x-model-version") for answer in answers} == {None}


def _engines(platform: RayPlatform) -> list[dict[str, Any]]:
    engines: list[dict[str, Any]] = platform.ready()["models"][TINY]["engines"]
    return engines
