"""One actor an application: holds everyone to their limits and keeps count of what is used.

It decides nothing itself: `serve_app.policy.limits` does. A grant or a settlement is in the journal
before its gateway hears of it, so that a ledger which is killed comes back with all that it said.
Gateways wait for it meanwhile, and repeat what runs, what has ended and what is asked.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from deployments.ledger_journal import Closed, Journal, Opened, Record, Snapshot, replay
from deployments.ledger_metrics import LedgerMetrics
from deployments.limit_exchange import LimitExchange
from serve_app import telemetry
from serve_app.bank_link import BankLink
from serve_app.config_limits import LedgerSettings
from serve_app.errors import InternalError
from serve_app.ledger_messages import (
    Forget,
    LeaseId,
    LeaseMail,
    LedgerMail,
    Look,
    Looked,
    Refused,
    Renew,
    Reserve,
    Resume,
    SetLogLevel,
    Settle,
    Settled,
)
from serve_app.messages import Endpoint
from serve_app.metrics import Metrics
from serve_app.policy.cell_limits import CellLimits
from serve_app.policy.leases import LeaseBook
from serve_app.policy.limit_shares import LimitShares
from serve_app.policy.limits import Limiter, LimitSource
from serve_app.policy.usage_counts import Charge
from serve_app.wire import Listener

logger = logging.getLogger(__name__)

_SYNC_EVERY_S = 0.05
_SWEEP_EVERY_S = 3600.0
_SHOW_EVERY_S = 2.0
_COMPACT_BYTES = 16 << 20
_LOCK_WAIT_S = 60.0
"""How long a new ledger waits for its predecessor to let go of the journal."""


def steady_clock() -> Callable[[], float]:
    """Returns a clock that starts at the wall clock's time and is not set while it runs."""
    offset_s = time.time() - time.monotonic()
    return lambda: time.monotonic() + offset_s


class Ledger:
    """Grants leases, settles them, and journals both.

    Args:
        source: Where limits and prices come from; may change what it says at any time.
        settings: Lengths of leases and what they reserve.
        journal: What it must not forget.
        host: Address that gateways can reach this process at.
        read_clock: Seconds since 1970.
        metrics: Of this process.
        bank: Keeps count for this cell and others; None where limits hold for this one alone.
    """

    def __init__(
        self,
        source: LimitSource,
        settings: LedgerSettings,
        journal: Journal,
        host: str,
        read_clock: Callable[[], float] | None = None,
        metrics: Metrics | None = None,
        bank: BankLink | None = None,
    ) -> None:
        self._metrics = LedgerMetrics(metrics)
        self._book = LeaseBook(settings.lease_s)
        self._journal = journal
        self._host = host
        self._read_clock = read_clock or steady_clock()
        self._now_s = self._read_clock()
        self._exchange: LimitExchange | None = None
        cell = None
        if bank is not None:
            cell = CellLimits(LimitShares(self._now_s), self._book)
            self._exchange = LimitExchange(bank, cell, self._read_clock, self._retry)
        self._limiter = Limiter(source, self._book, settings.reserve, cell)
        self._listener: Listener | None = None
        self._records: list[Record] = []
        """Of the message that is being handled; written before it is answered."""
        self._dirty_s: float | None = None
        """Since when something is written that was not forced to disk; by the monotonic clock."""
        self._wrote_s = 0.0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[LedgerMail])

    @property
    def endpoint(self) -> Endpoint:
        """Where gateways connect to.

        Raises:
            InternalError: It has not started.
        """
        if self._listener is None:
            raise InternalError("The ledger is still reading its journal.")
        return self._listener.endpoint

    async def start(self) -> None:
        """Reads the journal and begins to listen.

        Raises:
            InternalError: Another ledger holds the journal and does not let go of it.
        """
        await self._open_journal()
        started_s = time.monotonic()
        n_records = replay(self._journal, self._book)
        self._now_s = self._read_clock()
        self._book.recover(self._now_s)
        self._limiter.recall()
        self._compact()
        self._listener = Listener(self._host)
        logger.info(
            "The ledger read %d records in %.2f s; %d leases run.",
            n_records,
            time.monotonic() - started_s,
            len(self._book.state.running),
        )

    async def run(self) -> None:
        """Answers until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive_mail())
            tasks.create_task(self._tend())
            tasks.create_task(self._sweep())
            tasks.create_task(self._show_regularly())
            tasks.create_task(self._metrics.watch())
            if self._exchange is not None:
                tasks.create_task(self._exchange.run())

    def close(self) -> None:
        """Stops listening and lets go of the journal."""
        if self._listener is not None:
            self._listener.close()
        self._journal.close()

    # --- mail -------------------------------------------------------------------------------

    async def _receive_mail(self) -> None:
        assert self._listener is not None, "start comes before run"
        while True:
            sender, frames = await self._listener.receive()
            try:
                batch = self._decoder.decode(frames[0])
            except msgspec.DecodeError as error:
                logger.error("A message for the ledger is malformed: %s", error)
                continue
            self._now_s = self._read_clock()
            answers = self._handle(sender, batch)
            self._write()
            if answers:
                self._listener.send(sender, [self._encoder.encode(answers)])

    def _handle(self, sender: bytes, batch: list[LedgerMail]) -> list[LeaseMail]:
        self._expire()
        answers: list[LeaseMail] = []
        settled: list[LeaseId] = []
        for mail in batch:
            match mail:
                case Reserve():
                    answer = self._reserve(sender, mail)
                    answers += [] if answer is None else [answer]
                case Settle():
                    self._settle(mail)
                    settled.append(mail.lease)
                case Renew():
                    for lease, usage in mail.running.items():
                        self._book.renew(lease, usage, self._now_s)
                case Forget():
                    for lease in mail.leases:
                        self._book.forget(lease)
                case Resume():
                    self._resume(mail)
                case SetLogLevel():
                    telemetry.set_log_level(mail.level)
                case Look():
                    standing = self._limiter.look(mail.tenant, mail.key, mail.model, self._now_s)
                    answers.append(Looked(mail.number, standing))
        return [*answers, Settled(settled)] if settled else answers

    def _reserve(self, sender: bytes, mail: Reserve, *, may_wait: bool = True) -> LeaseMail | None:
        """Grants or refuses; None where the bank of cells is asked first."""
        answer, lease = self._limiter.reserve(mail, self._now_s)
        if isinstance(answer, Refused):
            exchange = self._exchange if may_wait and answer.may_come else None
            if exchange is not None and exchange.park(sender, mail):
                return None
            self._metrics.refuse(mail, answer)
        if lease is not None:
            self._records.append(Opened(lease))
            self._metrics.reserve(lease)
        return answer

    def _retry(self, sender: bytes, ask: Reserve, may_wait: bool) -> None:
        """Decides on a request for which the bank was asked."""
        assert self._listener is not None, "nothing comes before start"
        self._now_s = self._read_clock()
        self._expire()
        answer = self._reserve(sender, ask, may_wait=may_wait)
        self._write()
        if answer is not None:
            self._listener.send(sender, [self._encoder.encode([answer])])

    def _settle(self, mail: Settle) -> None:
        tenant = self._book.tenant_of(mail.lease)
        cost = self._book.settle(mail.lease, mail.usage, self._now_s)
        if cost is not None:
            if tenant is not None and mail.usage is not None:
                self._metrics.settle(tenant, mail.usage)
            self._record_close(mail.lease, cost, is_final=True)

    def _resume(self, mail: Resume) -> None:
        fresh = [
            lease
            for progress in mail.running
            if (lease := self._limiter.announce(progress, self._now_s)) is not None
        ]
        if fresh:
            logger.warning("A gateway runs %d leases that no journal knew.", len(fresh))
            self._records += [Opened(lease) for lease in fresh]

    def _expire(self) -> None:
        for lease, cost in self._book.expire(self._now_s):
            logger.warning("Lease %s lapsed: its gateway is silent.", lease)
            self._record_close(lease, cost, is_final=False)

    def _record_close(self, lease: LeaseId, cost: Charge, *, is_final: bool) -> None:
        self._records.append(Closed(lease, cost, self._now_s, is_final))

    # --- journal ----------------------------------------------------------------------------

    async def _open_journal(self) -> None:
        deadline_s = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                self._journal.open()
                return
            except BlockingIOError as error:
                if time.monotonic() > deadline_s:
                    raise InternalError(
                        f"Another ledger has held the journal for {_LOCK_WAIT_S:g} s. "
                        "Stop it, or give this one another ledger.folder."
                    ) from error
                await asyncio.sleep(0.1)

    def _write(self) -> None:
        if self._records:
            self._journal.append(self._records)
            self._records = []
            self._wrote_s = time.monotonic()
            if self._dirty_s is None:
                self._dirty_s = self._wrote_s

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_EVERY_S)
            self._now_s = self._read_clock()
            self._expire()
            self._write()
            if self._dirty_s is not None:
                await self._sync()
            if self._journal.n_bytes > 2 * self._compact_bytes:
                self._compact()

    async def _sync(self) -> None:
        """What is written while it goes on is forced to disk by the next one."""
        begun_s = time.monotonic()
        await asyncio.to_thread(self._journal.sync)
        self._dirty_s = begun_s if self._wrote_s >= begun_s else None
        self._metrics.sync(time.monotonic() - begun_s)

    def _compact(self) -> None:
        self._journal.replace(Snapshot(self._book.state))
        # So much of it is needed that replacing it sooner would be work for nothing.
        self._compact_bytes = max(_COMPACT_BYTES, self._journal.n_bytes)

    def show(self) -> None:
        """Shows operators how it stands; called regularly."""
        unsynced_s = 0.0 if self._dirty_s is None else time.monotonic() - self._dirty_s
        self._metrics.show(len(self._book.state.running), unsynced_s)
        self._metrics.show_budgets(self._limiter.budgets(self._read_clock()))

    async def _show_regularly(self) -> None:
        while True:
            self.show()
            await asyncio.sleep(_SHOW_EVERY_S)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            self._book.sweep(self._read_clock())
