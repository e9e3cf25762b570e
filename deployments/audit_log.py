"""Writes a router's decisions to files that `arriero fairness replay` checks.

Each file begins with all that holds at that point, so that each can be checked by itself and the
oldest can be removed. Records are written twice a second by a thread; a router that is killed loses
those of the last half second. If they cannot be written, the log goes on in a new file.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

import msgspec

from serve_app.config import AuditSettings
from serve_app.names import ModelName
from serve_app.policy.fairness_audit import Record

logger = logging.getLogger(__name__)

TellAll = Callable[[], Iterable[Record]]
"""Returns the records with which a log can begin in the middle."""

_WRITE_EVERY_S = 0.5
_MAX_PENDING_BYTES = 64 << 20
"""Far more than comes in while a disk is slow; beyond that it is out of order."""


class AuditLog:
    """The log of one model's router.

    Args:
        folder: Where the logs of all models are.
        model_name: Whose router it is.
        settings: How much is kept.
    """

    def __init__(self, folder: Path, model_name: ModelName, settings: AuditSettings) -> None:
        self._folder = folder / quote(model_name, safe="")
        self._settings = settings
        self._encoder = msgspec.json.Encoder()
        self._pending = bytearray()
        self._path: Path | None = None
        self._n_written = 0
        self._is_torn = False
        """Whether records are missing, so that only a new file can be checked."""

    def add(self, record: Record) -> None:
        """Takes a record; called by the queue for every decision."""
        if len(self._pending) < _MAX_PENDING_BYTES:
            self._pending += self._encoder.encode(record) + b"\n"
        else:
            self._is_torn = True

    async def run(self, tell_all: TellAll) -> None:
        """Writes until cancelled."""
        while True:
            await asyncio.sleep(_WRITE_EVERY_S)
            await self.write(tell_all)

    async def write(self, tell_all: TellAll) -> None:
        """Writes what has come, and begins a new file when the last one is full."""
        data, self._pending = bytes(self._pending), bytearray()
        # Encoded before anything is awaited: it has to be what holds after the last record.
        is_full = self._n_written + len(data) > self._settings.max_file_bytes
        beginning = self._encode(tell_all()) if is_full or self._is_torn else b""
        try:
            if data and not self._is_torn:
                await asyncio.to_thread(self._append, data)
            if beginning:
                self._path = None
                await asyncio.to_thread(self._append, beginning)
        except OSError as error:
            if not self._is_torn:
                logger.warning("The log of fair decisions cannot be written: %s", error)
            self._is_torn = True
        else:
            self._is_torn = False

    def _encode(self, records: Iterable[Record]) -> bytes:
        return b"".join(self._encoder.encode(record) + b"\n" for record in records)

    def _append(self, data: bytes) -> None:
        if self._path is None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path = self._folder / f"{time.time_ns()}.jsonl"
            self._n_written = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with open(os.open(self._path, flags, 0o600), "ab") as file:
            file.write(data)
        self._n_written += len(data)
        for path in sorted(self._folder.glob("*.jsonl"))[: -self._settings.max_files]:
            path.unlink()
