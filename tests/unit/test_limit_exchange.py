"""Two ledgers over real links, in one process, and the bank that they share, which tests end."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from deployments.ledger import Ledger
from deployments.ledger_journal import FileJournal
from serve_app.bank_link import BankLink
from serve_app.cell_messages import LIMITS_PATH, TellLimits
from serve_app.config_cell import CellMembership
from serve_app.config_limits import LedgerSettings
from serve_app.errors import ConfigError
from serve_app.gateway.ledger_client import LedgerClient
from serve_app.ledger_messages import Granted, Refused, Usage
from serve_app.messages import Endpoint
from serve_app.names import KeyId
from serve_app.policy.limit_bank import LEASE_S, LimitBank
from tests.support.limits import ACME, LLAMA, ask_for, limit_acme

_T = TypeVar("_T", bound=msgspec.Struct)


class Fleet:
    """A bank, and cells of a ledger with one client each."""

    def __init__(self, folder: Path, limits: dict[str, int]) -> None:
        self.bank: LimitBank | None = LimitBank(-LEASE_S)
        self.now_s = 1_800_000_000.0
        self.n_told: Counter[str] = Counter()
        self._folder = folder
        self._limits = limit_acme(**limits)
        self._ledgers: dict[str, tuple[Ledger, asyncio.Task[None]]] = {}
        self.clients: dict[str, LedgerClient] = {}

    async def start(self, name: str) -> None:
        ledger = Ledger(
            self._limits,
            LedgerSettings(),
            FileJournal(self._folder / name),
            "127.0.0.1",
            lambda: self.now_s,
            bank=_Link(name, self),
        )
        await ledger.start()
        self._ledgers[name] = ledger, asyncio.create_task(ledger.run())
        if name not in self.clients:
            client = LedgerClient(self._find(name), name.encode(), 10.0, 30.0)
            client.start()
            self.clients[name] = client

    async def end(self, name: str) -> None:
        ledger, task = self._ledgers.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ledger.close()

    async def close(self) -> None:
        for client in self.clients.values():
            client.close()
        for name in list(self._ledgers):
            await self.end(name)

    def _find(self, name: str) -> Callable[[], Any]:
        async def find() -> Endpoint:
            if name not in self._ledgers:
                raise ConnectionError("there is none")
            return self._ledgers[name][0].endpoint

        return find

    async def exchange_twice(self) -> None:
        """Waits until each cell has told the bank, and has told it again."""
        before = Counter(self.n_told)
        async with asyncio.timeout(10.0):
            while any(self.n_told[name] < before[name] + 3 for name in self._ledgers):  # noqa: ASYNC110 - nobody sets an event for tests
                await asyncio.sleep(0.02)

    async def ask(self, name: str, n: int) -> int:
        """Asks for n requests at once; returns how many were granted."""
        client = self.clients[name]
        answers = await asyncio.gather(*(client.reserve(ask_for(), Usage) for _ in range(n)))
        return sum(isinstance(answer, Granted) for answer in answers)


class _Link(BankLink):
    """To a bank in this process."""

    def __init__(self, cell: str, fleet: Fleet) -> None:
        self.cell, self.run, self.period_s = cell, f"{cell}-{time.monotonic_ns()}", 0.2
        self._fleet = fleet

    async def ask(self, path: str, question: msgspec.Struct, kind: type[_T]) -> _T | None:
        assert path == LIMITS_PATH
        assert isinstance(question, TellLimits)
        self._fleet.n_told[self.cell] += 1
        await asyncio.sleep(0.01)
        if self._fleet.bank is None:
            return None
        return msgspec.convert(self._fleet.bank.tell(question, self._fleet.now_s), kind | None)

    async def close(self) -> None:
        """Nothing is open."""


@contextlib.asynccontextmanager
async def fleet_with(folder: Path, **limits: int) -> AsyncIterator[Fleet]:
    fleet = Fleet(folder, limits)
    try:
        for name in ("east", "west"):
            await fleet.start(name)
        yield fleet
    finally:
        await fleet.close()


async def test_cells_share_one_limit_exactly(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, requests_per_min=9) as fleet:
        granted = await asyncio.gather(fleet.ask("east", 8), fleet.ask("west", 8))
        assert sum(granted) == 9


async def test_one_cell_may_use_all_of_a_limit(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, total_tokens_per_min=200) as fleet:
        assert await fleet.ask("west", 10) == 10
        assert await fleet.ask("east", 1) == 0


async def test_what_is_seen_left_counts_other_cells(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, requests_per_min=10) as fleet:
        assert await fleet.ask("west", 7) == 7
        assert await fleet.ask("east", 1) == 1
        standing = await fleet.clients["east"].look(ACME, KeyId(""), LLAMA)
        assert standing is not None
        assert standing.requests is not None
        assert standing.requests.limit == 10
        assert 0 <= standing.requests.remaining <= 2  # less what the other cell holds for more


async def test_a_refusal_tells_the_whole_limit_and_all_that_is_used(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, requests_per_min=4) as fleet:
        assert await fleet.ask("west", 4) == 4
        refused = await fleet.clients["east"].reserve(ask_for(), Usage)
        assert isinstance(refused, Refused)
        assert (refused.limit, refused.value, refused.used) == ("requests_per_min", 4, 4)
        assert refused.retry_after_s == 2.0


async def test_a_flood_that_is_refused_does_not_flood_the_bank(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, requests_per_min=1) as fleet:
        assert await fleet.ask("west", 1) == 1
        await fleet.ask("east", 1)
        before = fleet.n_told["east"]
        assert await fleet.ask("east", 200) == 0
        assert fleet.n_told["east"] - before <= 3


async def test_concurrent_requests_come_free_for_other_cells(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, concurrent_requests=2) as fleet:
        client = fleet.clients["west"]
        asks = [ask_for(), ask_for()]
        for ask in asks:
            assert isinstance(await client.reserve(ask, Usage), Granted)
        assert await fleet.ask("east", 1) == 0
        for ask in asks:
            client.settle(ask.lease, Usage(10, 10))
        await fleet.exchange_twice()
        assert await fleet.ask("east", 2) == 2


async def test_a_ledger_that_starts_anew_still_holds_what_it_has_counted(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, tokens_per_month=200) as fleet:
        assert await fleet.ask("west", 6) == 6
        await fleet.end("west")
        await fleet.start("west")
        await fleet.exchange_twice()
        assert await fleet.ask("east", 10) == 4


async def test_without_a_bank_each_cell_counts_its_part(tmp_path: Path) -> None:
    async with fleet_with(tmp_path, requests_per_min=10) as fleet:
        await fleet.exchange_twice()  # so that each knows of the other
        fleet.bank = None
        assert await fleet.ask("east", 1) == 0
        fleet.now_s += LEASE_S + 1.0
        assert await fleet.ask("east", 10) == 5
        assert await fleet.ask("west", 10) == 5


def test_a_cell_without_its_key_or_name_is_told_which_variable_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = CellMembership(name="env:ARRIERO_CELL", bank="https://front.example.com")
    monkeypatch.delenv("ARRIERO_CELLS_KEY", raising=False)
    monkeypatch.setenv("ARRIERO_CELL", "cells-3")
    with pytest.raises(ConfigError, match="ARRIERO_CELLS_KEY is not set"):
        BankLink(cell)
    monkeypatch.setenv("ARRIERO_CELLS_KEY", "0123456789abcdef")
    assert BankLink(cell).cell == "cells-3"
    monkeypatch.setenv("ARRIERO_CELL", "A name")
    with pytest.raises(ConfigError, match="ARRIERO_CELL holds no name"):
        BankLink(cell)
