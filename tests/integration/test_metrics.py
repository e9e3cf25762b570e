"""What the platform counts, and who may see whom to ask for it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve_app.keys import hash_key
from serve_app.telemetry import (
    COMPLETION_TOKENS,
    ENGINE_TOKENS,
    ENGINES_LOST,
    INTER_TOKEN,
    MIGRATION_GAP,
    MIGRATIONS,
    MODEL_READY,
    RECOMPUTED_TOKENS,
    REQUESTS,
    RESPONSES,
)
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import post
from tests.support.platform import LocalPlatform

pytestmark = pytest.mark.slow


@pytest.fixture
def platform(tiny_model: Path, tmp_path: Path) -> Iterator[LocalPlatform]:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=50.0, drain_timeout_s=1.0),
        auth={"kind": "keys"},
        tenants=[
            {"id": "a", "keys": [{"hash": hash_key("a")}]},
            {"id": "ops", "keys": [{"hash": hash_key("admin"), "scopes": ["admin"]}]},
        ],
        store={"state_dir": str(tmp_path)},
    )
    with LocalPlatform(settings, tmp_path, n_engines=2) as platform:
        yield platform


def complete(url: str, **fields: object) -> httpx.Response:
    body = {"model": "tiny", "prompt": [5] * 10, "max_tokens": 10} | fields
    return post(url, "/v1/completions", body, authorization="Bearer a")


def test_requests_are_counted_by_outcome(platform: LocalPlatform) -> None:
    assert complete(platform.url).status_code == 200
    assert complete(platform.url, max_tokens=-1).status_code == 400
    assert complete(platform.url, model="none").status_code == 404
    metrics = platform.metrics
    assert metrics.value(REQUESTS, "a", "tiny", "", "finished") == 1
    assert metrics.value(REQUESTS, "a", "tiny", "", "refused") == 1
    # It is counted when the answer has been sent.
    platform.wait_until(
        lambda: metrics.value(REQUESTS, "a", "", "", "refused") == 1, 5.0, "counted"
    )
    assert metrics.value(COMPLETION_TOKENS, "a", "tiny", "") == 10
    assert metrics.value(INTER_TOKEN, "a", "tiny") == 9
    assert metrics.value(ENGINE_TOKENS, "tiny") == 10
    assert metrics.value(RESPONSES, "404") == 1
    platform.wait_until(lambda: metrics.value(MODEL_READY, "tiny") == 1, 5.0, "shown")


def test_a_request_that_moves_is_counted_with_its_pause(platform: LocalPlatform) -> None:
    body = {"model": "tiny", "prompt": [5] * 10, "max_tokens": 100, "stream": True}
    headers, address = {"authorization": "Bearer a"}, f"{platform.url}/v1/completions"
    with httpx.stream("POST", address, json=body, headers=headers, timeout=60.0) as answer:
        lines = answer.iter_lines()
        next(lines)
        (engine,) = platform.tickets_by_engine()
        platform.stop_engine(engine)
        assert "data: [DONE]" in list(lines)
    metrics = platform.metrics
    assert metrics.value(MIGRATIONS, "tiny", "left") == 1
    assert metrics.value(MIGRATION_GAP, "tiny") == 1
    assert metrics.value(RECOMPUTED_TOKENS, "tiny") > 10
    assert metrics.value(ENGINES_LOST, "tiny", "left") == 1
    assert metrics.value(COMPLETION_TOKENS, "a", "tiny", "") == 100


def test_only_admins_see_whom_prometheus_asks(platform: LocalPlatform) -> None:
    def look(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.get(f"{platform.url}/metrics/targets", headers=headers).status_code

    assert [look(key) for key in ("", "a", "admin")] == [401, 403, 200]
