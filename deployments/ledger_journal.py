"""What the ledger must not forget, on disk: a snapshot, and what happened since.

Written before a gateway is answered, so that a ledger which is killed loses nothing that anyone was
told; forced to disk within 50 ms (`Ledger`), so that a machine which loses power loses no more.
"""

import fcntl
import logging
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any, Protocol, get_args

import msgspec

from serve_app.ledger_messages import LeaseId
from serve_app.policy.leases import BookState, Lease, LeaseBook
from serve_app.policy.usage_counts import Charge

logger = logging.getLogger(__name__)

_HEAD = struct.Struct("<II")
"""Length and CRC-32 of the record that follows."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """A lease was granted."""

    lease: Lease


class Closed(msgspec.Struct, frozen=True, tag=True):
    """A lease was settled or has lapsed."""

    lease: LeaseId
    cost: Charge
    now_s: float
    is_final: bool


class Snapshot(msgspec.Struct, frozen=True, tag=True):
    """Everything up to here."""

    state: BookState


Record = Opened | Closed | Snapshot


class Journal(Protocol):
    """Where records are kept in order. Has one writer at a time."""

    n_bytes: int
    """Size of what is kept."""

    def open(self) -> None:
        """Becomes the one writer.

        Raises:
            BlockingIOError: There is another one.
        """

    def read(self) -> Iterator[Record]:
        """Returns every record; called once, before anything is appended."""

    def append(self, records: Sequence[Record]) -> None:
        """Adds records; on return they survive the end of this process."""

    def sync(self) -> None:
        """Makes what was appended survive the machine. May be called from another thread."""

    def replace(self, snapshot: Snapshot) -> None:
        """Keeps the snapshot instead of everything before it."""

    def close(self) -> None:
        """Stops writing."""


def replay(journal: Journal, book: LeaseBook) -> int:
    """Does again what the journal says was done; returns how many records that were."""
    n_records = 0
    for record in journal.read():
        n_records += 1
        match record:
            case Snapshot():
                book.state = record.state
            case Opened():
                book.open(record.lease)
            case Closed():
                book.close(record.lease, record.cost, record.now_s, is_final=record.is_final)
    return n_records


class FileJournal:
    """A journal in a local file.

    Args:
        folder: Where; made if there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.n_bytes = 0
        self._folder = folder
        self._path = folder / "journal"
        self._lock = -1
        self._file = -1
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Record, dec_hook=read_ordered)

    def open(self) -> None:
        """Becomes the one writer."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise
        self._lock = lock
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def read(self) -> Iterator[Record]:
        """Returns every record, and cuts off one that was not written whole."""
        content = self._path.read_bytes()
        while (payload := self._frame_at(content)) is not None:
            self.n_bytes += _HEAD.size + len(payload)
            yield self._decoder.decode(payload)
        if self.n_bytes < len(content):
            n_cut = len(content) - self.n_bytes
            logger.warning("The journal's last %d bytes are no whole record; cut off.", n_cut)
            os.ftruncate(self._file, self.n_bytes)

    def _frame_at(self, content: bytes) -> bytes | None:
        """The record that starts at `n_bytes`, or None if there is no whole one."""
        start = self.n_bytes + _HEAD.size
        if start > len(content):
            return None
        length, checksum = _HEAD.unpack_from(content, self.n_bytes)
        payload = content[start : start + length]
        return payload if len(payload) == length and zlib.crc32(payload) == checksum else None

    def append(self, records: Sequence[Record]) -> None:
        """Adds records in one write."""
        frames = b"".join(self._frame(record) for record in records)
        _write_all(self._file, frames)
        self.n_bytes += len(frames)

    def _frame(self, record: Record) -> bytes:
        payload = self._encoder.encode(record)
        return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload

    def sync(self) -> None:
        """Forces the file to disk."""
        os.fdatasync(self._file)

    def replace(self, snapshot: Snapshot) -> None:
        """Writes another file and puts it in the old one's place."""
        draft = self._path.with_suffix(".draft")
        frame = self._frame(snapshot)
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        _write_all(file, frame)
        os.fsync(file)
        draft.replace(self._path)
        os.close(self._file)
        self._file, self.n_bytes = file, len(frame)
        self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def close(self) -> None:
        """Stops writing; another one may begin."""
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def read_ordered(kind: Any, value: Any) -> Any:
    """Msgspec knows no OrderedDict; the order of a mapping's entries it keeps."""
    mapping = GenericAlias(dict, get_args(kind))
    return OrderedDict(msgspec.convert(value, mapping, dec_hook=read_ordered))
