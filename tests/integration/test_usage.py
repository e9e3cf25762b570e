"""What a request used is recorded once, however it ended."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from cluster.fleet_book import Ended, FleetBook
from cluster.policy.fleet import NodeId, ZoneId
from cluster.policy.reconcile import Entry
from serve_app.keys import hash_key
from serve_app.usage import UsageRecord
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, connect, post
from tests.support.platform import LocalPlatform, wait_until

_KEY = "key-of-team-a"
_SCOPES = ["admin", "inference"]
_HEADERS = {"authorization": f"Bearer {_KEY}"}


@pytest.fixture
def platform(tiny_model: Path, tmp_path: Path) -> Any:
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=50.0),
        auth={"kind": "keys"},
        tenants=[{"id": "team-a", "keys": [{"hash": hash_key(_KEY)}]}],
        store={"state_dir": str(tmp_path / "state"), "usage_batch_s": 0.05},
    )
    with LocalPlatform(settings, tmp_path) as platform:
        yield platform


def _totals(platform: LocalPlatform) -> dict[str, Any]:
    rows = httpx.get(f"{platform.url}/v1/usage", headers=_HEADERS, timeout=10.0).json()["data"]
    names = ("requests", "prompt_tokens", "completion_tokens")
    return {name: sum(row[name] for row in rows) for name in names}


def test_answer_is_recorded_once_with_the_tokens_that_it_reports(platform: LocalPlatform) -> None:
    client = connect(platform.url, _KEY)
    usages = [
        client.chat.completions.create(model="tiny", messages=ask(), max_tokens=5, n=n).usage
        for n in (1, 3)
    ]
    wait_until(lambda: _totals(platform)["requests"] == 2, 10.0, "both recorded")
    assert all(usages)
    assert _totals(platform) == {
        "requests": 2,
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages if usage),
        "completion_tokens": sum(usage.completion_tokens for usage in usages if usage),
    }


def test_stream_whose_client_leaves_is_recorded_with_what_was_produced(
    platform: LocalPlatform,
) -> None:
    body = {"model": "tiny", "messages": ask(), "max_tokens": 400, "stream": True}
    with httpx.stream(
        "POST", f"{platform.url}/v1/chat/completions", json=body, headers=_HEADERS, timeout=30.0
    ) as answer:
        lines = (line for line in answer.iter_lines() if line)
        for _ in range(5):
            next(lines)
    wait_until(lambda: _totals(platform)["requests"] == 1, 10.0, "recorded")
    assert 3 <= _totals(platform)["completion_tokens"] < 400


def test_stream_is_written_down_while_it_runs_should_its_gateway_die(
    platform: LocalPlatform, tmp_path: Path
) -> None:
    def written() -> int:
        lines: list[bytes] = []
        for file in (tmp_path / "state" / "usage").glob("*.open"):
            with contextlib.suppress(FileNotFoundError):  # Nothing runs any more.
                lines += file.read_bytes().splitlines()
        # What has no token yet has no field for them.
        return sum(msgspec.json.decode(line, type=UsageRecord).completion_tokens for line in lines)

    body = {"model": "tiny", "messages": ask(), "max_tokens": 250, "stream": True}
    with httpx.stream(
        "POST", f"{platform.url}/v1/chat/completions", json=body, headers=_HEADERS, timeout=30.0
    ) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        wait_until(lambda: written() > 0, 10.0, "written down")
        assert _totals(platform)["requests"] == 0
        assert list(lines)[-1] == "data: [DONE]"
    wait_until(lambda: written() == 0, 10.0, "ended")
    wait_until(lambda: _totals(platform)["requests"] == 1, 10.0, "recorded")
    assert _totals(platform)["completion_tokens"] == 250


def test_refused_request_is_in_no_sum(platform: LocalPlatform) -> None:
    body = {"model": "tiny", "messages": ask(), "temperature": -1}
    assert post(platform.url, "/v1/chat/completions", body, **_HEADERS).status_code == 400
    connect(platform.url, _KEY).chat.completions.create(model="tiny", messages=ask(), max_tokens=1)
    wait_until(lambda: _totals(platform)["requests"] > 0, 10.0, "the other recorded")
    assert _totals(platform)["requests"] == 1


def test_fleets_cost_is_shared_out_among_tenants(tiny_model: Path, tmp_path: Path) -> None:
    """A node at 2 $/h that served half of its hour: tenants bear one, the other is wasted."""
    state = tmp_path / "state"
    zone = {"name": "east", "spot_usd_per_h": 2.0}
    now_s = time.time()
    hour_ago_s, half_s = now_s - 3600.0, now_s - 1800.0
    entry = Entry(NodeId("f-1"), ZoneId("local/east"), "spot", hour_ago_s, 2.0)
    served = replace(entry, up_s=hour_ago_s, ready_s=half_s)
    FleetBook(state / "fleet" / "f").add_ended(Ended(served, now_s, 6.0))
    settings = make_settings(
        write_echo(tiny_model),
        auth={"kind": "keys"},
        tenants=[{"id": "team-a", "keys": [{"hash": hash_key(_KEY), "scopes": _SCOPES}]}],
        store={"state_dir": str(state), "usage_batch_s": 0.05},
        fleet={"name": "f", "target": 1, "provisioner": {"kind": "local", "zones": [zone]}},
    )
    with LocalPlatform(settings, tmp_path) as platform:
        connect(platform.url, _KEY).chat.completions.create(
            model="tiny", messages=ask(), max_tokens=5
        )
        wait_until(lambda: _totals(platform)["requests"] == 1, 10.0, "recorded")
        url = f"{platform.url}/admin/usage"
        fleet = httpx.get(url, headers=_HEADERS, timeout=10.0).json()["fleet"]
        assert (
            "fleet"
            not in httpx.get(f"{platform.url}/v1/usage", headers=_HEADERS, timeout=10.0).json()
        )
    assert fleet["usd"] == pytest.approx(2.0, abs=0.01)
    assert fleet["wasted_usd"] == pytest.approx(1.0, abs=0.01)
    assert fleet["all_on_demand_usd"] == pytest.approx(6.0, abs=0.01)
    assert fleet["by_tenant"] == {"team-a": pytest.approx(1.0, abs=0.01)}
    assert fleet["by_node"]["f-1"]["usd"] == pytest.approx(2.0, abs=0.01)
