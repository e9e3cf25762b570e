"""A ledger's dealings with the bank of its cells: tells how limits stand, and gets its parts.

A request that needs more than this cell holds waits here until the bank has answered; a bank that
is away, or has no more, lets it be refused.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from serve_app.bank_link import BankLink
from serve_app.cell_messages import LIMITS_PATH, Parts, TellLimits
from serve_app.ledger_messages import Reserve
from serve_app.policy.cell_limits import CellLimits

_LEAST_S = 0.02
"""From one exchange to the next, however much waits."""
_MOST_WAITING = 10_000
_MOST_WAIT_S = 2.0


class _Waiting(NamedTuple):
    sender: bytes
    ask: Reserve
    since_s: float
    """By the monotonic clock."""


class LimitExchange:
    """Keeps a ledger's parts of limits up to date.

    Args:
        link: To the bank.
        limits: What this cell may count, and what does.
        read_clock: The ledger's, by which leases lapse.
        retry: Decides again on requests that waited; with whether they may wait on.
    """

    def __init__(
        self,
        link: BankLink,
        limits: CellLimits,
        read_clock: Callable[[], float],
        retry: Callable[[bytes, Reserve, bool], None],
    ) -> None:
        self._link = link
        self._limits = limits
        self._read_clock = read_clock
        self._retry = retry
        self._waiting: list[_Waiting] = []
        self._since_s = 0.0
        """Of the request that is decided on again."""
        self._wake = asyncio.Event()

    def park(self, sender: bytes, ask: Reserve) -> bool:
        """Let a request wait for the bank's next answer; false where too many do."""
        if len(self._waiting) >= _MOST_WAITING:
            return False
        self._waiting.append(_Waiting(sender, ask, self._since_s or time.monotonic()))
        self._wake.set()
        return True

    async def run(self) -> None:
        """Exchange until cancelled."""
        try:
            while True:
                await self.exchange()
                await asyncio.sleep(_LEAST_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._link.period_s):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            await self._link.close()

    async def exchange(self) -> None:
        """Ask the bank once, and decide again on what waited."""
        asked_s, waiting = self._read_clock(), self._waiting
        self._waiting = []
        counts = self._limits.give_up()
        told = TellLimits(self._link.cell, self._link.run, time.monotonic_ns(), counts)
        parts = await self._link.ask(LIMITS_PATH, told, Parts)
        if parts is not None:
            self._limits.shares.answer(counts, parts, asked_s)
        for sender, ask, since_s in waiting:
            self._since_s = since_s
            may_wait = parts is not None and time.monotonic() - since_s < _MOST_WAIT_S
            self._retry(sender, ask, may_wait)
        self._since_s = 0.0
