"""Records usage so that no row is lost or counted twice, whatever dies when.

    record() ──► spool file, synced to disk ──► acknowledged ──► database, in batches

1. A record is acknowledged once it is on this machine's disk, or in the database.
2. What is on disk reaches the database at least once: through this process, or through whichever
   next one finds the file without an owner.
3. The database takes each request id once.
4. Of a request that has not ended the disk has what was last said of it (`note_open`). It reaches
   the database only when this process has died, after what is in the spool file.

The disk being full or the database being away is a state, not a crash: records wait in memory, and
`has_room` turns false long before there is no room, so that the gateway refuses new requests
instead of losing the usage of those it has.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from serve_app.config_store import StoreSettings
from serve_app.errors import InternalError, StoreError, StoreRefusedError
from serve_app.store.spool import Spool
from serve_app.usage import UsageRecord

logger = logging.getLogger(__name__)

_MAX_WAITING = 50_000
"""Records that wait in memory for the disk at most; each takes less than 2 KiB, without texts."""
_MAX_EXTRAS_WAITING = 500
"""Records that wait from which on no texts are kept, nor records of what was refused: these are the
first to go when the disk does not keep up."""
_ROOM_FOR = 10_000
"""Records for which there must be room before another request is admitted."""
_RETRY_S = 1.0
_GATHER_S = 0.02
"""Records that end within this time go to disk together: the way to the thread that writes, and a
sync, cost more than a short request. It is also what a kill -9 can lose of ended requests."""
_ORPHANS_EVERY_S = 30.0
_RESET_BYTES = 1 << 20

_Waiting = tuple[UsageRecord, asyncio.Future[bool]]


class UsageSink(Protocol):
    """Where recorded usage ends up."""

    async def store(self, records: Sequence[UsageRecord]) -> None:
        """Stores records; those it has already, it leaves as they are.

        Raises:
            StoreRefusedError: A record can never be stored.
            StoreError: Not now.
        """


@dataclass(frozen=True)
class RecorderState:
    """How recording stands.

    Attributes:
        disk_problem: What is wrong with the disk; empty when nothing is.
        store_problem: What is wrong with the database; empty when nothing is.
        waiting: Records that are neither on disk nor in the database.
        unstored_bytes: Bytes on disk that the database does not have.
        lost: Records for which there was no room at all. More than 0 is an alarm.
    """

    disk_problem: str
    store_problem: str
    waiting: int
    unstored_bytes: int
    lost: int

    @property
    def problem(self) -> str:
        """What a person should know; empty when all is well."""
        return "; ".join(text for text in (self.disk_problem, self.store_problem) if text)


class UsageRecorder:
    """Takes usage from the gateway, on the gateway's event loop.

    Args:
        folder: Where spool files are, on a disk that survives the process.
        settings: How many records are stored at once, and how long they wait for that.
        sink: The database.
    """

    def __init__(self, folder: Path, settings: StoreSettings, sink: UsageSink) -> None:
        self._folder = folder
        self._batch_rows = settings.usage_batch_rows
        self._batch_s = settings.usage_batch_s
        self._sink = sink
        self._spool: Spool | None = None
        self._spool_use = asyncio.Lock()
        self._waiting: list[_Waiting] = []
        self._has_waiting = asyncio.Event()
        self._has_unstored = asyncio.Event()
        self._stored_bytes = 0
        self._has_open = False
        """Whether the disk has something of requests that have not ended."""
        self._holds_texts = False
        """Whether there are any in the file."""
        self._disk_problem = ""
        self._store_problem = ""
        self._lost = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def has_room(self) -> bool:
        """Whether the usage of one more request can be recorded for sure."""
        return len(self._waiting) < _MAX_WAITING - _ROOM_FOR

    @property
    def state(self) -> RecorderState:
        """How recording stands."""
        unstored = self._spool.size - self._stored_bytes if self._spool is not None else 0
        return RecorderState(
            self._disk_problem, self._store_problem, len(self._waiting), unstored, self._lost
        )

    def start(self) -> None:
        """Begins to write, in the background."""
        for work in (self._keep_spooling(), self._keep_storing(), self._keep_adopting()):
            self._tasks.append(asyncio.create_task(work, name="usage"))

    def record(self, record: UsageRecord) -> asyncio.Future[bool]:
        """Takes what a request used; to be called once, when it has ended.

        Returns at once. The future is done when the record would survive a crash; its result is
        False when there was no room for it: of usage none at all, of what used nothing, little.
        """
        durable: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= _MAX_EXTRAS_WAITING:
            if record.outcome == "refused":
                durable.set_result(False)
                return durable
            record = msgspec.structs.replace(record, texts=None)
        if len(self._waiting) >= _MAX_WAITING:
            self._lost += 1
            logger.error("Usage of request %s is lost: no room to keep it.", record.request_id)
            durable.set_result(False)
            return durable
        self._waiting.append((record.fitted(), durable))
        self._has_waiting.set()
        return durable

    async def note_open(self, records: Sequence[UsageRecord]) -> None:
        """Writes down what requests have used that have not ended, in place of the last time.

        A disk in trouble is not told of here: records of what ends meet it soon enough.
        """
        if not records and not self._has_open:
            return
        with contextlib.suppress(OSError):
            async with self._spool_use:
                if self._spool is None:
                    self._spool = await asyncio.to_thread(Spool.create, self._folder)
                await asyncio.to_thread(_write_open, self._spool, records)
                self._has_open = bool(records)

    def check_health(self) -> None:
        """Raises InternalError when recording has stopped, which no disk or database makes it."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                raise InternalError(f"Recording of usage stopped: {task.exception()!r}")

    async def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is left and stops. What the database does not take stays on disk."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._waiting:
            logger.error("Usage of %d requests is lost: %s", len(self._waiting), self.state.problem)
        if self._spool is not None:
            is_stored = self._stored_bytes == self._spool.size
            self._spool.close(remove=is_stored and not self._has_open)
            self._spool = None

    async def _drain(self) -> None:
        while self._waiting or self.state.unstored_bytes:
            if self._store_problem and not self._waiting:
                return
            await asyncio.sleep(0.01)

    # --- memory -> disk ---------------------------------------------------------------------

    async def _keep_spooling(self) -> None:
        while True:
            await self._has_waiting.wait()
            await asyncio.sleep(_GATHER_S)
            self._has_waiting.clear()
            while self._waiting:
                await self._make_durable(self._waiting[: self._batch_rows])

    async def _make_durable(self, batch: Sequence[_Waiting]) -> None:
        """Brings the oldest records to safety: to disk, or else straight into the database."""
        records = [record for record, _ in batch]
        if not await self._append(records) and not await self._store(records):
            await asyncio.sleep(_RETRY_S)
            return
        del self._waiting[: len(batch)]
        for _, durable in batch:
            if not durable.done():
                durable.set_result(True)

    async def _append(self, records: Sequence[UsageRecord]) -> bool:
        try:
            async with self._spool_use:
                if self._spool is None:
                    self._spool = await asyncio.to_thread(Spool.create, self._folder)
                self._holds_texts |= any(record.texts is not None for record in records)
                await asyncio.to_thread(self._spool.append, records)
        except OSError as error:
            self._note_disk_problem(f"usage cannot be written to disk: {error.strerror}")
            return False
        self._note_disk_problem("")
        self._has_unstored.set()
        return True

    # --- disk -> database -------------------------------------------------------------------

    async def _keep_storing(self) -> None:
        while True:
            await self._has_unstored.wait()
            await asyncio.sleep(self._batch_s)
            self._has_unstored.clear()
            # What arrives meanwhile waits: a small batch costs as much as a large one.
            up_to = self._spool.size if self._spool is not None else 0
            while self._spool is not None and self._stored_bytes < min(up_to, self._spool.size):
                if not await self._store_next(self._spool):
                    await asyncio.sleep(_RETRY_S)
            async with self._spool_use:
                if self._spool is not None:
                    await self._shorten(self._spool)

    async def _store_next(self, spool: Spool) -> bool:
        try:
            records, offset = await asyncio.to_thread(
                spool.read, self._stored_bytes, self._batch_rows
            )
        except OSError as error:
            self._note_disk_problem(f"recorded usage cannot be read: {error.strerror}")
            return False
        if not await self._store(records):
            return False
        self._stored_bytes = offset
        return True

    async def _shorten(self, spool: Spool) -> None:
        """Keeps a file from growing while records never cease, and texts from staying in it."""
        rest = spool.size - self._stored_bytes
        is_long = self._stored_bytes > _RESET_BYTES
        if not rest and (is_long or self._holds_texts):
            await asyncio.to_thread(spool.reset)
            self._stored_bytes, self._holds_texts = 0, False
        elif is_long and rest <= _RESET_BYTES:
            with contextlib.suppress(OSError):  # The next batch tries again.
                self._spool = await asyncio.to_thread(
                    spool.move_rest, self._folder, self._stored_bytes
                )
                self._stored_bytes = 0
                await asyncio.to_thread(spool.close, remove=True)

    async def _store(self, records: Sequence[UsageRecord]) -> bool:
        try:
            await self._sink.store(records)
        except StoreRefusedError:
            return await self._store_one_by_one(records)
        except StoreError as error:
            self._note_store_problem(str(error))
            return False
        self._note_store_problem("")
        return True

    async def _store_one_by_one(self, records: Sequence[UsageRecord]) -> bool:
        """One record that can never be stored must not hold up the others."""
        for record in records:
            try:
                await self._sink.store([record])
            except StoreRefusedError as error:
                await self._put_aside(record, error)
            except StoreError as error:
                self._note_store_problem(str(error))
                return False
        return True

    async def _put_aside(self, record: UsageRecord, error: StoreRefusedError) -> None:
        logger.error("Usage of request %s was put aside: %s", record.request_id, error)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_append_to, self._folder / "refused.jsonl", record)

    # --- what dead processes left -----------------------------------------------------------

    async def _keep_adopting(self) -> None:
        while True:
            try:
                await self._adopt_all()
            except OSError as error:
                logger.warning("Usage left by another process cannot be read: %s", error.strerror)
            await asyncio.sleep(_ORPHANS_EVERY_S)

    async def _adopt_all(self) -> None:
        for spool in Spool.adopt_orphans(self._folder):
            is_stored = False
            try:
                is_stored = await self._store_all(spool)
            finally:
                spool.close(remove=is_stored)
            if not is_stored:
                return

    async def _store_all(self, spool: Spool) -> bool:
        offset, n_records = 0, 0
        while offset < spool.size:
            records, end = await asyncio.to_thread(spool.read, offset, self._batch_rows)
            if end == offset:
                break  # What is left was never acknowledged.
            if not await self._store(records):
                return False
            offset = end
            n_records += len(records)
        cut_off = await asyncio.to_thread(spool.read_open)
        if cut_off and not await self._store(cut_off):
            return False
        n_records += len(cut_off)
        logger.info("Stored usage of %d requests that an ended process left.", n_records)
        return True

    # --- state ------------------------------------------------------------------------------

    def _note_disk_problem(self, text: str) -> None:
        if text != self._disk_problem:
            _log_change("The disk for usage", text)
        self._disk_problem = text

    def _note_store_problem(self, text: str) -> None:
        if text != self._store_problem:
            _log_change("The database for usage", text)
        self._store_problem = text


def _write_open(spool: Spool, records: Sequence[UsageRecord]) -> None:
    spool.write_open([record.fitted() for record in records])


def _append_to(path: Path, record: UsageRecord) -> None:
    """Without texts: no retention and nobody's wish deletes from this file."""
    plain = msgspec.structs.replace(record, texts=None)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(plain) + b"\n")


def _log_change(what: str, problem: str) -> None:
    if problem:
        logger.error("%s is in trouble; records are kept until it works: %s", what, problem)
    else:
        logger.info("%s works again.", what)
