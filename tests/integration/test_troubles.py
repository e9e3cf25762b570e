"""Engines that fail without dying, die before they give a token, or cannot start."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deployments.echo_core import EchoCore
from deployments.engine import Engine
from serve_app.errors import EngineStartError
from serve_app.messages import EngineId
from serve_app.names import ModelName
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import post, read_error
from tests.support.platform import LocalPlatform

TINY = ModelName("tiny")


def complete(platform: LocalPlatform) -> Any:
    body = {"model": "tiny", "prompt": "One two", "max_tokens": 4}
    return post(platform.url, "/v1/completions", body)


def details_of(platform: LocalPlatform) -> dict[str, str]:
    """What `/ready` says of each engine."""
    return {engine["id"]: engine["detail"] for engine in platform.list_engines()}


def break_core(platform: LocalPlatform, engine_id: str, accept: Callable[..., None]) -> None:
    core = platform.engines[EngineId(engine_id)]._core
    assert isinstance(core, EchoCore)
    core.accept = accept  # type: ignore[method-assign]  # what breaks in the test


def refuse(*_: object) -> None:
    raise RuntimeError("a device that is out of order")


def test_engine_that_runs_nothing_costs_no_request(tiny_model: Path, tmp_path: Path) -> None:
    with LocalPlatform(make_settings(write_echo(tiny_model)), tmp_path, n_engines=2) as platform:
        break_core(platform, "engine-1", refuse)
        answers = [complete(platform) for _ in range(12)]
        assert [answer.status_code for answer in answers] == [200] * 12
        platform.wait_until(
            lambda: "keeps failing" in details_of(platform)["engine-1"], 3.0, "shown"
        )


def test_failures_beyond_the_budget_are_told_at_once(tiny_model: Path, tmp_path: Path) -> None:
    limits = {"retry_reserve": 2, "retry_share": 0.0}
    settings = make_settings(write_echo(tiny_model), limits=limits)
    n_tries = 0

    def count_and_refuse(*_: object) -> None:
        nonlocal n_tries
        n_tries += 1
        raise RuntimeError("a device that is out of order")

    with LocalPlatform(settings, tmp_path) as platform:
        break_core(platform, "engine-1", count_and_refuse)
        answers = [complete(platform) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [500] * 5
        assert n_tries == 5 + 2


def test_deaths_beyond_the_budget_are_503_for_those_without_a_token(
    tiny_model: Path, tmp_path: Path
) -> None:
    # A prompt of so many tokens keeps an engine busy for long before it gives one.
    slow: dict[str, Any] = {"batch": {"step_s": 0.02, "per_prompt_token_s": 0.05}}
    settings = make_settings(write_echo(tiny_model, **slow), limits={"retry_reserve": 0})
    with LocalPlatform(settings, tmp_path, engines_in_processes=True) as platform:
        body = {"model": "tiny", "prompt": "word " * 400, "max_tokens": 4}
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, platform.url, "/v1/completions", body)
            platform.wait_until(lambda: platform.count_running() == 1, 10.0, "running")
            platform.kill_engine(EngineId("engine-1"))
            refused = answer.result()
        assert refused.status_code == 503
        assert "retry_share" in read_error(refused)["message"]
        assert "retry-after" in refused.headers


def test_engine_that_cannot_start_says_why_and_waits_longer_each_time(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.policy.start_ups.FIRST_S", 1.5)
    settings = make_settings(write_echo(tiny_model))
    with LocalPlatform(settings, tmp_path) as platform:
        missing = settings.models[0].model_dump() | {
            "source": {"kind": "local", "path": str(tmp_path / "nowhere")}
        }
        model = type(settings.models[0]).model_validate(missing)
        took_s = []
        for i in range(2):
            find_router = platform._find_router_of(TINY)
            engine = Engine(model, EngineId(f"bad-{i}"), find_router, "127.0.0.1")
            began_s = time.monotonic()

            async def start(engine: Engine = engine) -> None:
                with pytest.raises(EngineStartError, match="could not be started"):
                    await engine.start()
                engine._router.close()

            platform.run(start())
            took_s.append(time.monotonic() - began_s)
        assert took_s[0] < 1.5 <= took_s[1]
        assert "2 starts have failed" in details_of(platform)["bad-1"]
        assert complete(platform).status_code == 200
