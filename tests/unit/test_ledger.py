"""The ledger and its client over a real link, in one process, with a clock that tests set."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deployments.ledger import Ledger
from deployments.ledger_journal import FileJournal
from serve_app.config_limits import LedgerSettings
from serve_app.errors import OverloadedError
from serve_app.gateway.ledger_client import LedgerClient
from serve_app.ledger_messages import Granted, Refused, Usage
from serve_app.messages import Endpoint
from serve_app.metrics import Metrics
from serve_app.names import KeyId
from serve_app.telemetry import (
    BUDGET_USED,
    JOURNAL_SYNC,
    LEASES,
    LIMIT_REFUSALS,
    RESERVED_TOKENS,
    SETTLED_TOKENS,
    UNSYNCED,
)
from tests.support.limits import ACME, LLAMA, TableOfLimits, ask_for, limit_acme

SETTINGS = LedgerSettings(lease_s=30.0)


class Site:
    """A ledger that can be ended and started again, and the clients that look for it."""

    def __init__(self, folder: Path, limits: TableOfLimits) -> None:
        self.now_s = 1_800_000_000.0
        self.ledger: Ledger | None = None
        self._folder = folder
        self._limits = limits
        self._task: asyncio.Task[None] | None = None
        self._clients: list[LedgerClient] = []
        self.metrics = Metrics()

    async def start(self) -> None:
        """Starts a ledger from the journal there is."""
        journal = FileJournal(self._folder)
        ledger = Ledger(
            self._limits,
            SETTINGS,
            journal,
            "127.0.0.1",
            lambda: self.now_s,
            metrics=self.metrics,
        )
        await ledger.start()
        self._task = asyncio.create_task(ledger.run())
        self.ledger = ledger

    async def end(self) -> None:
        """Ends it without a word to anyone."""
        assert self.ledger is not None
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.ledger.close()
        self.ledger = None

    async def find(self) -> Endpoint:
        """Where it is, if there is one."""
        if self.ledger is None:
            raise ConnectionError("there is none")
        return self.ledger.endpoint

    def connect(self, wait_s: float = 10.0, lease_s: float = 30.0) -> LedgerClient:
        """Another gateway's client."""
        name = f"gateway-{len(self._clients)}".encode()
        client = LedgerClient(self.find, name, wait_s, lease_s)
        client.start()
        self._clients.append(client)
        return client

    async def used_tokens(self) -> int:
        """What the one tenant's limit has left, turned round."""
        standing = await self._clients[0].look(ACME, KeyId(""), LLAMA)
        assert standing is not None
        assert standing.tokens is not None
        return standing.tokens.limit - standing.tokens.remaining

    async def close(self) -> None:
        """Ends everything."""
        for client in self._clients:
            client.close()
        if self.ledger is not None:
            await self.end()


@contextlib.asynccontextmanager
async def site_with(folder: Path, **limits: int) -> AsyncIterator[Site]:
    site = Site(folder, limit_acme(**limits))
    await site.start()
    try:
        yield site
    finally:
        await site.close()


async def until_settled(client: LedgerClient) -> None:
    async with asyncio.timeout(10.0):
        while client.n_open:  # noqa: ASYNC110 - nobody sets an event for tests
            await asyncio.sleep(0.01)


async def test_clients_share_one_limit(tmp_path: Path) -> None:
    async with site_with(tmp_path, requests_per_min=7) as site:
        clients = [site.connect() for _ in range(3)]
        answers = await asyncio.gather(
            *(client.reserve(ask_for(), Usage) for client in clients for _ in range(5))
        )
        assert sum(isinstance(answer, Granted) for answer in answers) == 7


async def test_settlement_while_the_ledger_is_away_counts_once(tmp_path: Path) -> None:
    async with site_with(tmp_path, total_tokens_per_min=100) as site:
        client = site.connect()
        asks = [ask_for(10, 10) for _ in range(3)]
        for ask in asks:
            await client.reserve(ask, Usage)
        assert await site.used_tokens() == 60
        await site.end()
        client.settle(asks[0].lease, Usage(10, 1))
        await site.start()
        client.settle(asks[1].lease, Usage(10, 2))
        await asyncio.sleep(0.2)
        client.settle(asks[2].lease, None)
        await until_settled(client)
        assert await site.used_tokens() == 11 + 12
        await site.end()
        await site.start()
        later = ask_for(10, 10)
        await client.reserve(later, Usage)
        assert await site.used_tokens() == 11 + 12 + 20


async def test_request_waits_for_a_ledger_that_is_away(tmp_path: Path) -> None:
    async with site_with(tmp_path, total_tokens_per_min=100) as site:
        client = site.connect()
        await client.reserve(ask_for(10, 10), Usage)
        await site.end()
        waiting = asyncio.create_task(client.reserve(ask_for(30, 30), Usage))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await site.start()
        assert isinstance(await waiting, Granted)
        assert await site.used_tokens() == 80
        assert isinstance(await client.reserve(ask_for(30, 30), Usage), Refused)


async def test_request_that_gave_up_waiting_takes_nothing(tmp_path: Path) -> None:
    async with site_with(tmp_path, total_tokens_per_min=100) as site:
        client = site.connect(wait_s=0.3)
        await client.reserve(ask_for(10, 10), Usage)
        await site.end()
        with pytest.raises(OverloadedError) as raised:
            await client.reserve(ask_for(30, 30), Usage)
        assert raised.value.retry_after_s > 0
        await site.start()
        await asyncio.sleep(1.0)
        assert await site.used_tokens() == 20
        assert client.n_open == 1


async def test_cancelled_request_takes_nothing(tmp_path: Path) -> None:
    async with site_with(tmp_path, total_tokens_per_min=100) as site:
        client = site.connect()
        await client.reserve(ask_for(10, 10), Usage)
        asking = asyncio.create_task(client.reserve(ask_for(30, 30), Usage))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(0.2)
        assert await site.used_tokens() == 20


async def test_leases_of_a_gateway_that_died_lapse_to_what_it_last_said(tmp_path: Path) -> None:
    async with site_with(tmp_path, concurrent_requests=2, total_tokens_per_min=100) as site:
        # One renews every 50 ms, while for the ledger no time passes.
        lasting, dying = site.connect(lease_s=0.3), site.connect()
        await dying.reserve(ask_for(10, 30), Usage)
        await lasting.reserve(ask_for(10, 10), lambda: Usage(10, 3))
        dying.close()
        site.now_s += 29.0
        await asyncio.sleep(0.3)
        site.now_s += 2.0
        await asyncio.sleep(0.2)
        assert await site.used_tokens() == 20
        assert isinstance(await lasting.reserve(ask_for(10, 10), Usage), Granted)


async def test_ledger_counts_what_it_grants_refuses_and_settles(tmp_path: Path) -> None:
    async with site_with(tmp_path, tokens_per_day=100) as site:
        client, metrics = site.connect(), site.metrics
        granted = ask_for(20, 40)
        assert isinstance(await client.reserve(granted, Usage), Granted)
        assert isinstance(await client.reserve(ask_for(20, 40), Usage), Refused)
        assert metrics.value(RESERVED_TOKENS, ACME) == 60
        assert metrics.value(LIMIT_REFUSALS, ACME, "tokens_per_day") == 1
        assert site.ledger is not None
        site.ledger.show()
        assert metrics.value(LEASES) == 1
        assert metrics.value(BUDGET_USED, ACME, "tokens_per_day") == pytest.approx(0.6)
        client.settle(granted.lease, Usage(20, 5))
        client.settle(granted.lease, Usage(20, 5))
        await until_settled(client)
        async with asyncio.timeout(10.0):
            while not metrics.value(JOURNAL_SYNC):  # noqa: ASYNC110 - a disk sets no event
                await asyncio.sleep(0.01)
        site.ledger.show()
        assert metrics.value(SETTLED_TOKENS, ACME) == 25
        assert metrics.value(LEASES) == 0
        assert metrics.value(UNSYNCED) < 1.0
        assert metrics.value(BUDGET_USED, ACME, "tokens_per_day") == pytest.approx(0.25)
