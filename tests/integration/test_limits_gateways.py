"""Limits with many gateways and a ledger that is killed: nobody is let in beyond them, or kept out.

Four gateway processes over one ledger process, 200 clients at once, 1,000 requests.
"""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.ledger_journal import FileJournal, replay
from serve_app.keys import hash_key
from serve_app.names import TenantId
from serve_app.policy.leases import LeaseBook, Scope
from tests.integration.conftest import make_settings, write_echo
from tests.support.gateway_process import GatewayProcesses
from tests.support.platform import LocalPlatform, wait_until

N_CLIENTS, N_REQUESTS, N_GATEWAYS = 200, 1000, 4
PROMPT, COMPLETION = 6, 4
LEASE_S = 10.0
TENANTS = ("requests", "tokens", "month", "places", "free")
TERMS: dict[str, Any] = {
    "requests": {"limits": {"requests_per_min": 60}},
    "tokens": {"limits": {"total_tokens_per_min": 700}},
    "month": {"budgets": {"tokens_per_month": 555}},
    "places": {"limits": {"concurrent_requests": 5}},
    "free": {"budgets": {"tokens_per_month": 1_000_000}},
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@dataclass
class Outcome:
    """What became of all requests of one tenant."""

    n_admitted: int = 0
    tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    refusals: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def platform(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalPlatform, list[str], Path]]:
    folder = tmp_path_factory.mktemp("gateways")
    settings = make_settings(
        write_echo(tiny_model, tokens_per_s=100.0, max_num_seqs=64),
        auth={"kind": "keys"},
        tenants=[
            {"id": name, "keys": [{"hash": hash_key(name)}], **TERMS[name]} for name in TENANTS
        ],
        ledger={"wait_s": 30.0, "lease_s": LEASE_S},
        store={"state_dir": str(folder)},
    )
    with LocalPlatform(settings, folder, ledger_in_process=True) as platform:
        gateways = GatewayProcesses([settings] * N_GATEWAYS, folder)
        try:
            for url in gateways.urls:
                wait_until(lambda url=url: is_ready(url), 200.0, "ready")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            yield platform, gateways.urls, folder
            gateways.check()
        finally:
            gateways.kill()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=60.0).is_success
    except httpx.TransportError:
        return False


async def load(urls: list[str], tenants: tuple[str, ...]) -> dict[str, Outcome]:
    """Sends all requests, one tenant after the other, from all clients to all gateways."""
    outcomes = {tenant: Outcome() for tenant in tenants}
    work = iter(range(N_REQUESTS))
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(make_client(url)) for url in urls]

        async def send_all() -> None:
            for i in work:
                tenant = tenants[i % len(tenants)]
                await send(clients[i % len(clients)], tenant, outcomes[tenant])

        await asyncio.gather(*(send_all() for _ in range(N_CLIENTS)))
    return outcomes


def make_client(url: str) -> httpx.AsyncClient:
    """A pool for one gateway, with a connection for everyone, which never expires.

    A pool that is full, or whose connections expire, closes idle ones to make room; httpcore 1.0
    may have given such a one to another request already, which then ends with a ReadError.
    """
    pool = httpx.Limits(max_connections=None, keepalive_expiry=None)
    return httpx.AsyncClient(base_url=url, timeout=120.0, limits=pool)


async def send(client: httpx.AsyncClient, tenant: str, outcome: Outcome) -> None:
    body = {"model": "tiny", "prompt": [500] * PROMPT, "max_tokens": COMPLETION}
    keys = {"authorization": f"Bearer {tenant}"}
    answer = await client.post("/v1/completions", json=body, headers=keys)
    outcome.statuses[answer.status_code] += 1
    if answer.is_success:
        outcome.n_admitted += 1
        outcome.tokens += answer.json()["usage"]["total_tokens"]
    else:
        outcome.refusals.append({**answer.json()["error"], **answer.headers})


def test_all_gateways_together_admit_exactly_what_limits_allow(
    platform: tuple[LocalPlatform, list[str], Path],
) -> None:
    _, urls, _ = platform
    started_s = time.monotonic()
    outcomes = asyncio.run(load(urls, ("requests", "tokens", "month", "free")))
    # On a machine so busy that this takes minutes, what a limit allows comes again.
    n_windows = 1 + int((time.monotonic() - started_s) / 60.0)
    print({tenant: (o.n_admitted, o.tokens, dict(o.statuses)) for tenant, o in outcomes.items()})
    assert {status for o in outcomes.values() for status in o.statuses} <= {200, 429}
    assert outcomes["free"].n_admitted == N_REQUESTS // 4
    assert 60 <= outcomes["requests"].n_admitted <= 60 * n_windows
    assert 700 <= outcomes["tokens"].tokens <= 700 * n_windows
    assert outcomes["month"].tokens == 550
    for tenant, limit in (("requests", 60), ("tokens", 700), ("month", 555)):
        for refusal in outcomes[tenant].refusals:
            assert f"is {limit}; " in refusal["message"]
            assert int(refusal["retry-after-ms"]) > 0


def test_a_killed_ledger_loses_and_doubles_nothing(
    platform: tuple[LocalPlatform, list[str], Path],
) -> None:
    local, urls, folder = platform

    async def load_and_kill() -> dict[str, Outcome]:
        working = asyncio.create_task(load(urls, ("free", "places")))
        for _ in range(2):
            await asyncio.sleep(1.0)
            await asyncio.to_thread(local.kill_ledger)
            await asyncio.sleep(0.3)
            local.start_ledger()
        return await working

    before = tokens_this_month(folder, "free"), tokens_this_month(folder, "places")
    outcomes = asyncio.run(load_and_kill())
    print({tenant: (o.n_admitted, o.tokens, dict(o.statuses)) for tenant, o in outcomes.items()})
    assert outcomes["free"].n_admitted == N_REQUESTS // 2
    assert set(outcomes["places"].statuses) <= {200, 429}
    after = tokens_this_month(folder, "free"), tokens_this_month(folder, "places")
    assert after[0] - before[0] == outcomes["free"].tokens
    assert after[1] - before[1] == outcomes["places"].tokens


def tokens_this_month(folder: Path, tenant: str) -> int:
    """As the journal has it when every lease has ended."""
    books: list[LeaseBook] = []

    def have_all_ended() -> bool:
        books.append(read_book(folder))
        return not books[-1].state.running

    wait_until(have_all_ended, 40.0, "settled")
    return books[-1].account(Scope(TenantId(tenant))).used("month").tokens


def read_book(folder: Path) -> LeaseBook:
    """What another ledger would start from at this moment."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(folder / "journal" / "journal", copy)
        book, journal = LeaseBook(LEASE_S), FileJournal(Path(copy))
        journal.open()
        replay(journal, book)
        journal.close()
    return book
