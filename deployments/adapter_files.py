"""Reads the two files of an adapter from wherever they are, and never more than it should.

Runs in an import worker (`deployments.adapter_worker`): every call here may block.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serve_app.errors import AdapterAwayError, AdapterRefusedError, ArrieroError

_RANGE_BYTES = 16 << 20
_RETRY_AFTER_S = 5.0


@dataclass(frozen=True)
class Stamp:
    """A file as it is now.

    Attributes:
        n_bytes: Its size.
        mark: Another one when its content is another.
    """

    n_bytes: int
    mark: str


class AdapterFolder(Protocol):
    """A folder with an adapter's files."""

    def stamp(self, name: str) -> Stamp | None:
        """How a file is now; None where there is none."""

    def read(self, name: str, n_bytes: int) -> bytes:
        """A file's content, which has this size. Raises AdapterAwayError where it has not."""


@contextmanager
def open_folder(source: str, scratch: Callable[[int], Path]) -> Iterator[AdapterFolder]:
    """The folder of a source (`serve_app.adapter_source`).

    Args:
        source: In its one form.
        scratch: Makes a folder on this node for so many bytes that have to be put down first.

    Raises:
        AdapterRefusedError: There is no such place, or it leads out of where it should be.
        AdapterAwayError: It cannot be reached.
    """
    scheme, _, rest = source.partition("://")
    with _explained():
        if scheme == "file":
            yield LocalFolder(Path(rest))
        elif scheme == "hf":
            yield HubFolder(rest, scratch)
        else:
            yield BucketFolder(source)


class LocalFolder:
    """A folder of this node's file system.

    Links are followed only while they stay among the adapter's siblings (`sql -> sql-v3`), and for
    its files in the adapter's own folder. What was opened is checked, not what a path led to a
    moment ago.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._real = Path(os.path.realpath(path))
        if not self._real.is_dir():
            raise AdapterRefusedError("There is no such folder.", is_missing=True)
        if not self._real.is_relative_to(os.path.realpath(path.parent)):
            raise AdapterRefusedError("Its folder is a link that leads out of the folder above it.")

    def stamp(self, name: str) -> Stamp | None:
        """How a file is now; None where there is none."""
        opened = self._open(name)
        if opened is None:
            return None
        try:
            return _stamp_of(opened)
        finally:
            os.close(opened)

    def read(self, name: str, n_bytes: int) -> bytes:
        """A file's content, which has this size."""
        opened = self._open(name)
        if opened is None:
            raise _changed(name)
        with open(opened, "rb") as file:
            content = file.read(n_bytes + 1)
        if len(content) != n_bytes:
            raise _changed(name)
        return content

    def _open(self, name: str) -> int | None:
        try:
            opened = os.open(self._path / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        where = Path(os.readlink(f"/proc/self/fd/{opened}"))
        if where.parent != self._real or not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise AdapterRefusedError(
                f"{name} is no plain file in the adapter's own folder; links that lead out of it "
                "are not followed. Put the file itself there."
            )
        return opened


def _stamp_of(opened: int) -> Stamp:
    found = os.fstat(opened)
    return Stamp(found.st_size, f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}")


class BucketFolder:
    """A prefix of a bucket in an object store."""

    def __init__(self, uri: str) -> None:
        import fsspec

        self._uri = uri
        # Neither an instance nor a listing of before: what is there now counts.
        self._files: Any = fsspec.filesystem(
            uri.partition("://")[0], skip_instance_cache=True, use_listings_cache=False
        )

    def stamp(self, name: str) -> Stamp | None:
        """How a file is now; None where there is none."""
        try:
            found = self._files.info(f"{self._uri}/{name}")
        except FileNotFoundError:
            return None
        if found.get("type") != "file":
            return None
        encoding = found.get("contentEncoding") or found.get("ContentEncoding")
        if encoding:  # Google's client unpacks it, however long it becomes.
            raise AdapterRefusedError(
                f"{name} is stored with the content encoding {str(encoding)[:80]!r}; put the file "
                "itself there, not a compressed one."
            )
        tag = found.get("ETag") or found.get("etag") or found.get("LastModified")
        return Stamp(int(found["size"]), f"{tag}.{found['size']}")

    def read(self, name: str, n_bytes: int) -> bytes:
        """A file's content, which has this size. Long files come in parts at the same time."""
        starts = list(range(0, n_bytes, _RANGE_BYTES))
        ends = [min(start + _RANGE_BYTES, n_bytes) for start in starts]
        paths = [f"{self._uri}/{name}"] * len(starts)
        # What goes wrong with one part would stand among the others, and not be raised.
        parts = self._files.cat_ranges(paths, starts, ends, on_error="raise")
        content = b"".join(parts)
        if len(content) != n_bytes:
            raise AdapterAwayError(
                f"{name} was cut off: {len(content)} of {n_bytes} bytes came.", _RETRY_AFTER_S
            )
        return content


class HubFolder:
    """A repository of the Hugging Face hub, put down on this node by the hub's own client."""

    def __init__(self, address: str, scratch: Callable[[int], Path]) -> None:
        from huggingface_hub import HfApi

        self._id, _, self._revision = address.rpartition("@")
        self._scratch = scratch
        self._local: LocalFolder | None = None
        info = HfApi().model_info(self._id, revision=self._revision, files_metadata=True)
        self._commit = str(info.sha)
        self._sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}

    def stamp(self, name: str) -> Stamp | None:
        """How a file is now; None where there is none."""
        size = self._sizes.get(name)
        return None if size is None else Stamp(size, f"{self._commit}.{size}")

    def read(self, name: str, n_bytes: int) -> bytes:
        """A file's content, which has this size."""
        from huggingface_hub import snapshot_download

        folder = self._scratch(n_bytes)
        snapshot_download(
            self._id, revision=self._commit, allow_patterns=[name], local_dir=folder, max_workers=1
        )
        return LocalFolder(folder).read(name, n_bytes)


def _changed(name: str) -> AdapterAwayError:
    return AdapterAwayError(f"{name} changed while it was read.", _RETRY_AFTER_S)


@contextmanager
def _explained() -> Iterator[None]:
    """Each store's library has exceptions of its own, and not all are about a store."""
    try:
        yield
    except ArrieroError:
        raise
    except FileNotFoundError:
        raise AdapterRefusedError("There is no such folder.", is_missing=True) from None
    except Exception as error:
        name = type(error).__name__
        if name in ("RepositoryNotFoundError", "RevisionNotFoundError", "NoSuchBucket"):
            raise AdapterRefusedError("There is no such repository.", is_missing=True) from None
        reason = str(error).splitlines()[0][:300] if str(error) else ""
        raise AdapterAwayError(
            f"It cannot be read: {name}{': ' + reason if reason else ''}", _RETRY_AFTER_S
        ) from None
