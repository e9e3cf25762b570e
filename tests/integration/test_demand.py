"""What counts as demand for engines, and how a request waits that nobody can read yet."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serve_app.keys import hash_key
from serve_app.names import ModelName
from serve_app.telemetry import TTFT, WAKE
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import post
from tests.support.platform import LocalPlatform

TINY = ModelName("tiny")


@pytest.fixture
def platform(tiny_model: Path, tmp_path: Path) -> Iterator[LocalPlatform]:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=20.0, max_num_seqs=8, replicas={"min": 1, "max": 4}),
        auth={"kind": "keys"},
        tenants=[
            {"id": "few", "keys": [{"hash": hash_key("few")}], "limits": {"requests_per_min": 2}},
            {"id": "free", "keys": [{"hash": hash_key("free")}]},
        ],
        store={"state_dir": str(tmp_path / "state")},
    )
    with LocalPlatform(settings, tmp_path) as platform:
        yield platform


def ask(url: str, key: str) -> httpx.Response:
    body = {"model": TINY, "prompt": [5] * 10, "max_tokens": 20}
    return post(url, "/v1/completions", body, authorization=f"Bearer {key}")


def wanted(platform: LocalPlatform) -> int:
    return int(platform.ready()["models"][TINY]["scaling"]["wanted"])


def test_tenant_over_its_limit_buys_no_engines(platform: LocalPlatform) -> None:
    with ThreadPoolExecutor(30) as pool:
        statuses = [r.status_code for r in pool.map(lambda _: ask(platform.url, "few"), range(30))]
        assert (statuses.count(200), statuses.count(429)) == (2, 28)
        assert wanted(platform) == 1
        answers = [pool.submit(ask, platform.url, "free") for _ in range(30)]
        platform.wait_until(lambda: wanted(platform) > 1, 20.0, "more engines wanted")
        assert {answer.result().status_code for answer in answers} == {200}


@pytest.fixture
def sleepy(tiny_model: Path, tmp_path: Path) -> Iterator[LocalPlatform]:
    """A model of which no engine has ever run."""
    settings = make_settings(
        write_echo(tiny_model, replicas={"min": 0, "max": 1}),
        limits={"max_waiting": 1},
        store={"state_dir": str(tmp_path / "state")},
    )
    with LocalPlatform(settings, tmp_path) as platform:
        assert state(platform) == "waking"
        yield platform


BODY = {"model": TINY, "prompt": [5] * 10, "max_tokens": 3}


def state(platform: LocalPlatform) -> str:
    return str(platform.ready()["models"][TINY]["state"])


def n_calling(platform: LocalPlatform) -> int:
    """Requests that wait at the gateway, as nobody can read them yet."""
    return platform._gateways[0].gateway._models[TINY].client.n_calling


def test_request_waits_for_the_first_engine_to_say_how_it_is_read(sleepy: LocalPlatform) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, sleepy.url, "/v1/completions", BODY)
        sleepy.wait_until(lambda: n_calling(sleepy) == 1, 10.0, "waiting")
        refused = post(sleepy.url, "/v1/completions", BODY)
        assert refused.status_code == 503
        assert "limits.max_waiting is 1" in refused.json()["error"]["message"]
        sleepy.add_engine(TINY)
        assert answer.result(30.0).status_code == 200
    assert sleepy.metrics.value(WAKE, TINY) == 1
    assert sleepy.metrics.value(TTFT, "anonymous", TINY) == 0


def test_client_that_hangs_up_no_longer_wakes_the_model(sleepy: LocalPlatform) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{sleepy.url}/v1/completions", json=BODY, timeout=0.5)
    sleepy.wait_until(lambda: n_calling(sleepy) == 0, 2.0, "noticed")


def test_request_is_read_for_what_a_model_wakes_up_as(
    sleepy: LocalPlatform, tiny_model: Path, tmp_path: Path
) -> None:
    asleep = sleepy.add_engine(TINY)
    sleepy.wait_until(lambda: post(sleepy.url, "/v1/completions", BODY).is_success, 30.0, "awake")
    sleepy.stop_engine(asleep)
    sleepy.wait_until(lambda: state(sleepy) == "waking", 10.0, "gone")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    sleepy.settings = make_settings(
        write_echo(other, replicas={"min": 0, "max": 1}),
        store={"state_dir": str(tmp_path / "state")},
    )
    sleepy.configure(sleepy.settings)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, sleepy.url, "/v1/completions", BODY)
        sleepy.wait_until(lambda: n_calling(sleepy) == 1, 10.0, "waiting")
        sleepy.add_engine(TINY)
        assert answer.result(30.0).status_code == 200
