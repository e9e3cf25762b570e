"""What counts as demand for engines, and how a request waits that nobody can read yet."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serve_app.keys import hash_key
from serve_app.names import ModelName
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
    body = {"model": TINY, "prompt": [5] * 10, "max_tokens": 60}
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


def test_request_waits_for_the_first_engine_to_say_how_it_is_read(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = make_settings(
        write_echo(tiny_model, replicas={"min": 0, "max": 1}),
        store={"state_dir": str(tmp_path / "state")},
    )
    answers: list[httpx.Response] = []
    with LocalPlatform(settings, tmp_path) as platform:
        assert platform.ready()["models"][TINY]["state"] == "waking"
        body = {"model": TINY, "prompt": [5] * 10, "max_tokens": 3}
        client = threading.Thread(
            target=lambda: answers.append(post(platform.url, "/v1/completions", body))
        )
        client.start()
        client.join(2.0)
        assert client.is_alive(), "nobody can read it yet"
        platform.add_engine(TINY)
        client.join(30.0)
    assert [answer.status_code for answer in answers] == [200]
