"""A node's adapters on its disk: bounded, shared by all processes, right after any crash.

    <folder>/lock              held for moments, by whoever adds or removes
    <folder>/ready/<key>/      whole adapters; their size is in each one's import.json
    <folder>/staging/<name>/   half-made ones, each locked by the process that makes it

A folder under `ready` came there by a rename, so it is whole, unless the machine itself went down:
nothing waits for the disk here, as readers compare checksums. Whoever uses one holds a shared lock
(flock) on it, which the kernel lifts when the process dies; only what nobody holds is removed,
the longest unused first. Staging folders that nobody holds are leftovers and are removed.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from serve_app.errors import AdapterAwayError, AdapterRefusedError

_RETRY_AFTER_S = 5.0
_RESERVED = "reserved"
"""File with the bytes that a half-made adapter will take."""


class Hold:
    """One process's use of an adapter's folder; it is not removed meanwhile."""

    def __init__(self, path: Path, opened: int) -> None:
        self.path = path
        self._opened = opened

    def release(self) -> None:
        """Ends the use."""
        if self._opened >= 0:
            os.close(self._opened)
            self._opened = -1


class AdapterCache:
    """The folder. Calls may block for moments; everything long is done by import workers.

    Args:
        folder: Made if it is not there. Must be on a local file system, for its locks.
        max_bytes: Most that all files in it take together.

    Raises:
        AdapterAwayError: The folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._ready = folder / "ready"
        self._staging = folder / "staging"
        self._sizes: dict[str, int] = {}
        """Of whole adapters, which never change; kept to spare asking the disk each time."""
        try:
            for each in (self._ready, self._staging):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise AdapterAwayError(
                f"The folder {str(folder)!r} (adapters.cache.path) cannot be made on this node: "
                f"{error.strerror}.",
                _RETRY_AFTER_S,
            ) from None

    def hold(self, key: str) -> Hold | None:
        """Takes hold of an adapter; None where it is not here."""
        path = self._ready / key
        try:
            opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        hold = Hold(path, opened)
        try:
            fcntl.flock(opened, fcntl.LOCK_SH)
            # It may have been removed between the two calls; then the lock is on nothing.
            if os.fstat(opened).st_ino != path.stat().st_ino:
                raise FileNotFoundError
            os.utime(opened)
        except FileNotFoundError:
            hold.release()
            return None
        return hold

    def publish(
        self, key: str, config: bytes, facts: bytes, n_bytes: int, weights: Iterable[bytes]
    ) -> None:
        """Writes an adapter down and makes it visible at once, or not at all.

        Args:
            key: What it is to be found by.
            config: Its `adapter_config.json`.
            facts: Its `import.json`.
            n_bytes: Size of its weights' file.
            weights: That file, in parts.

        Raises:
            AdapterRefusedError: It is larger than the whole cache, or its weights are.
            AdapterAwayError: There is no room.
        """
        small = {"adapter_config.json": config, "import.json": facts}
        total = n_bytes + sum(len(content) for content in small.values())
        with _room_explained(), self._stage(total) as (path, release):
            _write(path / "adapter_model.safetensors", weights, n_bytes)
            for name, content in small.items():
                _write(path / name, [content], len(content))
            with self._lock():
                (path / _RESERVED).unlink()
                release()
                if not (self._ready / key).exists():  # Another process may have been faster.
                    path.rename(self._ready / key)

    def discard(self, key: str) -> bool:
        """Removes an adapter whose files are damaged; returns whether nobody used it."""
        with self._lock():
            return self._remove(key)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Callable[[int], Path]]:
        """Makes folders for so many bytes of what is no adapter yet; they are removed at the end.

        Each may raise as `publish`.
        """
        made: list[tuple[Path, int]] = []

        def make(n_bytes: int) -> Path:
            made.append(self._reserve(n_bytes))
            return made[-1][0]

        try:
            yield make
        finally:
            for path, opened in made:
                shutil.rmtree(path, ignore_errors=True)
                os.close(opened)

    def sweep(self) -> None:
        """Removes what processes left that died while they made something."""
        with self._lock():
            self._sweep()

    def _sweep(self) -> None:
        for entry in list(os.scandir(self._staging)):
            opened = _try_lock(Path(entry.path))
            if opened is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(opened)

    def n_bytes(self) -> int:
        """Bytes that everything here takes together, half-made adapters included."""
        return sum(self._list_ready().values()) + self._count_staged()

    # --- room -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _stage(self, n_bytes: int) -> Iterator[tuple[Path, Callable[[], None]]]:
        """A folder to write in, for which there is room; and what lifts its lock."""
        path, opened = self._reserve(n_bytes)
        hold = Hold(path, opened)
        try:
            yield path, hold.release
        finally:
            shutil.rmtree(path, ignore_errors=True)
            hold.release()

    def _reserve(self, n_bytes: int) -> tuple[Path, int]:
        with self._lock():
            self._sweep()
            self._make_room(n_bytes)
            path, opened = self._make_staging()
            # Whoever makes room next counts this one already.
            (path / _RESERVED).write_text(str(n_bytes))
        return path, opened

    def _make_staging(self) -> tuple[Path, int]:
        path = self._staging / f"{os.getpid()}-{secrets.token_hex(6)}"
        path.mkdir(mode=0o700)
        opened = _try_lock(path)
        assert opened is not None, "nobody knows it yet"
        return path, opened

    def _make_room(self, n_bytes: int) -> None:
        """Removes the longest unused, as many as needed."""
        if n_bytes > self._max_bytes:
            raise AdapterRefusedError(
                f"It takes {n_bytes} bytes, and the node's whole cache of adapters may take "
                f"{self._max_bytes} (adapters.cache.max_gib)."
            )
        sizes = dict(self._list_ready())
        excess = sum(sizes.values()) + self._count_staged() + n_bytes - self._max_bytes
        for key in self._longest_unused(sizes) if excess > 0 else ():
            if excess > 0 and self._remove(key):
                excess -= sizes[key]
        if excess > 0:
            raise AdapterAwayError(
                f"The node's cache of adapters ({self._max_bytes} bytes, adapters.cache.max_gib) "
                "is full of adapters in use. Try again later, or give it more room.",
                _RETRY_AFTER_S,
            )

    def _list_ready(self) -> dict[str, int]:
        names = {entry.name for entry in os.scandir(self._ready)}
        for gone in self._sizes.keys() - names:
            del self._sizes[gone]
        for name in names - self._sizes.keys():
            with contextlib.suppress(FileNotFoundError):
                self._sizes[name] = sum(e.stat().st_size for e in os.scandir(self._ready / name))
        return self._sizes

    def _longest_unused(self, sizes: Iterable[str]) -> list[str]:
        used_ns = {}
        for key in sizes:
            with contextlib.suppress(FileNotFoundError):
                used_ns[key] = ((self._ready / key).stat().st_mtime_ns, key)
        return sorted(used_ns, key=lambda key: used_ns[key])

    def _remove(self, key: str) -> bool:
        """Removes an adapter unless somebody holds it; out of sight at once, as a whole."""
        opened = _try_lock(self._ready / key)
        if opened is None:
            return False
        target = self._staging / f"{os.getpid()}-{secrets.token_hex(6)}"
        try:
            (self._ready / key).rename(target)
            shutil.rmtree(target, ignore_errors=True)
        finally:
            os.close(opened)
        return True

    def _count_staged(self) -> int:
        total = 0
        for entry in os.scandir(self._staging):
            with contextlib.suppress(FileNotFoundError, ValueError):
                total += int((Path(entry.path) / _RESERVED).read_text())
        return total

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        opened = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield
        finally:
            os.close(opened)


def _try_lock(path: Path) -> int | None:
    """Locks a folder for oneself alone; None where somebody holds it, or it is gone."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


def _write(path: Path, parts: Iterable[bytes], n_bytes: int) -> None:
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, n_bytes)  # No room is noticed before the work.
        for part in parts:
            file.write(part)


@contextlib.contextmanager
def _room_explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AdapterAwayError(
            "The disk with the node's cache of adapters (adapters.cache.path) is full.",
            _RETRY_AFTER_S,
        ) from None
