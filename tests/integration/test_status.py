"""What operators see and change while the platform runs: `arriero top`, the log level, the logs."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app import telemetry
from serve_app.keys import hash_key
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, post
from tests.support.platform import LocalPlatform
from tests.support.streams import Stream

_KEYS = {"a": "key-of-team-a", "b": "key-of-team-b", "admin": "key-of-the-admin"}
_SECRET = "Zanzibar marmalade"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("status")
    tenants = [
        {"id": name, "keys": [{"hash": hash_key(key), "scopes": scopes}], "weight": 2.0}
        for (name, key), scopes in zip(
            _KEYS.items(), (["inference"], ["inference"], ["admin"]), strict=True
        )
    ]
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=20.0, max_num_seqs=1),
        limits={"max_running_per_engine": 1},
        fairness={"preempts": False},  # Or nobody would wait for the engine's one place.
        auth={"kind": "keys"},
        tenants=tenants,
        prices={"tiny": {"usd_per_million_completion_tokens": 1000.0}},
        store={"state_dir": str(folder / "state"), "usage_batch_s": 0.05},
    )
    with LocalPlatform(settings, folder, n_gateways=2) as platform:
        yield platform


@pytest.fixture
def run(platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch, run_cli: Run) -> Run:
    monkeypatch.setenv("ARRIERO_URL", platform.url)
    monkeypatch.setenv("ARRIERO_ADMIN_KEY", _KEYS["admin"])
    monkeypatch.setenv("COLUMNS", "160")
    telemetry.set_log_level("")
    return run_cli


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ask(_SECRET), "max_tokens": 40} | changes


def key_of(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {_KEYS[tenant]}"}


def test_top_shows_who_waits_who_runs_and_who_paid(platform: LocalPlatform, run: Run) -> None:
    path = "/v1/chat/completions"
    streams = [
        Stream(
            platform.url,
            body(stream=True, max_tokens=n_tokens),
            path,
            authorization=f"Bearer {_KEYS[tenant]}",
        )
        for tenant, n_tokens in (("a", 60), ("a", 60), ("b", 60))
    ]

    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run("top", "--once", "--json")[1])
        return found

    def queued() -> list[int]:
        tenants = [t for t in status()["tenants"] if t["tenant"] in "ab"]
        return [sum(t[name] for t in tenants) for name in ("waiting", "running")]

    platform.wait_until(lambda: queued() == [2, 1], 5.0, "two wait")
    found = status()
    tenants = {tenant["tenant"]: tenant for tenant in found["tenants"]}
    assert found["totals"]["waiting"] == 2
    assert tenants["a"]["weight"] == 2.0
    assert found["models"][0]["engines"][0]["state"] == "ready"
    (domain,) = found["domains"]
    assert 0.0 <= domain["gap"] <= domain["bound"]
    for stream in streams:
        stream.finish()
    platform.wait_until(lambda: status()["totals"]["requests"] >= 3, 10.0, "recorded")
    status_code, out, _ = run("top", "--once")
    assert status_code == 0
    assert "tiny" in out
    assert "engine-1" in out
    assert status()["totals"]["cost_usd"] == pytest.approx(0.18)


def test_top_says_what_is_wrong(
    platform: LocalPlatform, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = run("top", "--once", "--url", "http://127.0.0.1:9")
    assert status == 1
    assert "does not answer" in err
    monkeypatch.setenv("ARRIERO_ADMIN_KEY", _KEYS["a"])
    status, _, err = run("top", "--once")
    assert status == 1
    assert "scope" in err


def test_where_keys_are_off_this_machine_may_look_and_change_nothing(
    echo_platform: LocalPlatform, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARRIERO_ADMIN_KEY", raising=False)
    monkeypatch.setenv("ARRIERO_URL", echo_platform.url)
    status, out, err = run_cli("top", "--once")
    assert (status, err) == (0, "")
    assert "tiny" in out
    answer = httpx.put(f"{echo_platform.url}/admin/logging", json={"level": "DEBUG"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "keys_are_off")


def test_where_keys_are_on_nobody_looks_without(platform: LocalPlatform) -> None:
    assert httpx.get(f"{platform.url}/admin/status").status_code == 401


def test_level_changes_at_every_gateway_and_back(platform: LocalPlatform, run: Run) -> None:
    def levels() -> set[str]:
        answers = [
            httpx.get(f"{url}/admin/logging", headers=key_of("admin")) for url in platform.urls
        ]
        return {answer.json()["level"] for answer in answers}

    assert levels() == {"INFO"}
    assert run("logs", "level", "DEBUG")[1] == "DEBUG\n"
    platform.wait_until(lambda: levels() == {"DEBUG"}, 5.0, "everywhere")
    assert logging.getLogger("deployments").level == logging.DEBUG
    assert run("logs", "level")[1] == "DEBUG\n"
    assert run("logs", "level", "default")[1] == "INFO\n"
    platform.wait_until(lambda: levels() == {"INFO"}, 5.0, "back")
    bad = httpx.put(f"{platform.url}/admin/logging", json={"level": "x"}, headers=key_of("admin"))
    assert bad.status_code == 400


def test_each_request_is_one_line_without_texts_or_keys(
    platform: LocalPlatform,
) -> None:
    def lines() -> list[logging.LogRecord]:
        """Of this test's requests: the end of an earlier test's is written after its answer."""
        whole = (r for r in records if r.name.endswith("request_log"))
        return [line for line in whole if "/v1/chat/completions" in line.getMessage()]

    records: list[logging.LogRecord] = []
    keep = logging.Handler()
    keep.emit = records.append  # type: ignore[method-assign, assignment]  # the least of a handler
    loggers = [logging.getLogger(name) for name in ("serve_app", "deployments")]
    for each in loggers:
        each.addHandler(keep)
        each.setLevel(logging.DEBUG)
    try:
        headers = key_of("a") | {"x-request-id": "line-1"}
        assert post(platform.url, "/v1/chat/completions", body(), **headers).status_code == 200
        bad = body(temperature=-1)
        assert post(platform.url, "/v1/chat/completions", bad, **headers).status_code == 400
        wrong = {"authorization": "Bearer key-that-is-wrong"}
        assert post(platform.url, "/v1/chat/completions", body(), **wrong).status_code == 401
        assert httpx.get(f"{platform.url}/ready").status_code == 200
        platform.wait_until(lambda: len(lines()) >= 3, 5.0, "a line for each")
    finally:
        for each in loggers:
            each.removeHandler(keep)
            each.setLevel(logging.INFO)
    assert not any("/ready" in r.getMessage() for r in records)
    fields: list[dict[str, Any]] = [vars(line)["fields"] for line in lines()]
    assert [each["status"] for each in fields] == [200, 400, 401]
    assert (fields[0]["tenant"], fields[0]["completion_tokens"]) == ("a", 40)
    assert fields[0]["outcome"] == "finished"
    assert fields[1]["outcome"] == "refused"
    # The router says which request it hands out, by a name that holds the client's.
    assert any("line-1" in r.getMessage() for r in records if r.name.startswith("deploy"))
    for line in records:
        text = line.getMessage() + str(vars(line))
        assert _SECRET not in text
        assert not any(key in text for key in [*_KEYS.values(), "key-that-is-wrong"])
