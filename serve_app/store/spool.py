"""A file that keeps usage from the moment a request ends until the database has it.

One line of JSON a record. A process appends to a file of its own and holds a lock on it. When the
process dies, however it dies, the kernel releases the lock; whoever takes it then stores what is in
the file and removes it. Lines may be read twice: the database takes each request once.

A second file beside it says what requests have used so far that have not ended. It is read only
when the process has died, after the first: what that says of a request at its end counts.

Nothing here is asynchronous: it runs on a worker thread, one call at a time.
"""

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from serve_app.usage import UsageRecord

logger = logging.getLogger(__name__)

_PATTERN = "usage-*.jsonl"
_READ_BYTES = 1 << 20

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UsageRecord)


class Spool:
    """One file, locked by this process."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._is_torn = False

    @classmethod
    def create(cls, folder: Path) -> "Spool":
        """Makes a new file.

        Raises:
            OSError: The folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"usage-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        # Locked before it has the name under which others look for it.
        hidden = path.with_suffix(".new")
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        hidden.rename(path)
        _sync_folder(folder)
        return cls(path, fd)

    @classmethod
    def adopt_orphans(cls, folder: Path) -> "Iterator[Spool]":
        """Yields files whose process is gone, each locked now; close each before the next."""
        for path in sorted(folder.glob(_PATTERN)):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDWR | os.O_APPEND)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(fd)
                    continue
                yield cls(path, fd)

    @property
    def size(self) -> int:
        """Bytes that are safely in the file."""
        return self._size

    def append(self, records: Sequence[UsageRecord]) -> None:
        """Writes records and returns when they are on the disk.

        Raises:
            OSError: They may not be there, wholly or in part, and have to be appended again.
        """
        lines = b"".join(_encoder.encode(record) + b"\n" for record in records)
        self._mend()
        self._is_torn = True
        written = 0
        while written < len(lines):
            written += os.write(self._fd, lines[written:])
        os.fdatasync(self._fd)
        self._is_torn = False
        self._size += len(lines)

    def _mend(self) -> None:
        """Removes what an append that failed left behind."""
        if self._is_torn:
            os.ftruncate(self._fd, self._size)
            self._is_torn = False

    def write_open(self, records: Sequence[UsageRecord]) -> None:
        """Says what requests have used that have not ended, in place of what was said before.

        Not synced: a process that dies leaves it, a machine may not.

        Raises:
            OSError: What was said before may stand.
        """
        if not records:
            self._open_path.unlink(missing_ok=True)
            return
        draft = self._open_path.with_suffix(".draft")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(b"".join(_encoder.encode(record) + b"\n" for record in records))
        draft.rename(self._open_path)

    def read_open(self) -> list[UsageRecord]:
        """Returns what requests had used that had not ended; for when their process is gone."""
        try:
            return [_decoder.decode(line) for line in self._open_path.read_bytes().splitlines()]
        except FileNotFoundError:
            return []
        except msgspec.DecodeError:
            logger.error("%s is damaged and skipped.", self._open_path.name)
            return []

    @property
    def _open_path(self) -> Path:
        return self._path.with_suffix(".open")

    def read(self, offset: int, most_rows: int) -> tuple[list[UsageRecord], int]:
        """Returns records from a position on, and the position after them.

        An incomplete last line belongs to an append that was not acknowledged and is left out.
        """
        data = os.pread(self._fd, min(_READ_BYTES, self._size - offset), offset)
        records: list[UsageRecord] = []
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n") or len(records) == most_rows:
                break
            offset += len(line)
            try:
                records.append(_decoder.decode(line))
            except msgspec.DecodeError:
                logger.error("A line of %s is damaged and skipped.", self._path.name)
        return records, offset

    def move_rest(self, folder: Path, offset: int) -> "Spool":
        """Returns a new file with what is behind a position; this one is to be removed then.

        Raises:
            OSError: There is none; this one is as it was.
        """
        fresh = Spool.create(folder)
        try:
            fresh.append(self.read(offset, self._size)[0])
        except OSError:
            fresh.close(remove=True)
            raise
        return fresh

    def reset(self) -> None:
        """Empties the file; for when everything in it is stored."""
        os.ftruncate(self._fd, 0)
        self._size = 0
        self._is_torn = False

    def close(self, *, remove: bool) -> None:
        """Gives the file up; removes both where everything in them is stored."""
        if remove:
            # In this order: without the first nobody would look for the second.
            self._open_path.with_suffix(".draft").unlink(missing_ok=True)
            self._open_path.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        os.close(self._fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
