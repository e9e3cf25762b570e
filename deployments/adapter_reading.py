"""Reads adapters' weights into memory beside the step loop, for the loop to take over uncopied.

    read_ahead(id, folder)  on any thread: the file comes into memory while Python's lock is free
    take(id)                on the core's thread: its bytes, of which tensors then are parts
    discard(id)             when nobody is to take them any more

Engines whose workers are processes of their own find nothing here, and read from the page cache.
Files are those that import workers wrote, so their headers need no checks once the checksum of what
was read is the one that the worker noted.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from deployments.adapter_jobs import AdapterFacts

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
FACTS_FILE = "import.json"
_LENGTH_BYTES = 8

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_read: dict[int, Bytes] = {}
"""By adapter."""


class DamagedCopyError(Exception):
    """The files on this node's disk are not those that were written there."""


class Span(msgspec.Struct, frozen=True):
    """Where a tensor lies in a file, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_ahead(adapter_id: int, folder: Path) -> None:
    """Reads an adapter's weights, if they are there.

    Raises:
        OSError: They cannot be read.
        DamagedCopyError: They are not what was written down.
    """
    path = folder / WEIGHTS_FILE
    if not path.exists():
        return
    content = _read_whole(path)
    # Folders that no import worker made have none.
    if (folder / FACTS_FILE).exists() and not is_whole(folder, [content.data]):
        raise DamagedCopyError(f"The copy of adapter {adapter_id} on this node's disk is damaged.")
    _read[adapter_id] = content


def _read_whole(path: Path) -> Bytes:
    with path.open("rb", buffering=0) as file:
        content: Bytes = np.empty(path.stat().st_size, np.uint8)
        left = content.data
        while left and (n_bytes := file.readinto(left)):
            left = left[n_bytes:]
    return content[: content.size - len(left)]


def is_whole(folder: Path, weights: Iterable[bytes | memoryview]) -> bool:
    """Whether an adapter's files are what an import worker wrote down.

    Args:
        folder: Its folder in the node's cache.
        weights: The content of its weights' file, in parts.

    Raises:
        OSError: A file cannot be read.
        msgspec.MsgspecError: What was noted of it is damaged.
    """
    config = (folder / CONFIG_FILE).read_bytes()
    return checksum_of(weights, config) == read_facts(folder).sha256


def read_facts(folder: Path) -> AdapterFacts:
    """Returns what was noted of an adapter when it was imported. Raises as `is_whole`."""
    return msgspec.json.decode((folder / FACTS_FILE).read_bytes(), type=AdapterFacts)


def checksum_of(weights: Iterable[bytes | memoryview], config: bytes) -> str:
    """Returns the SHA-256 of both files. Python's lock is free meanwhile."""
    digest = hashlib.sha256()
    for part in weights:
        digest.update(part)
    digest.update(config)
    return digest.hexdigest()


def discard(adapter_id: int) -> None:
    """Forgets what was read and not taken."""
    _read.pop(adapter_id, None)


def take(adapter_id: int) -> Bytes | None:
    """Returns what was read of an adapter's weights, once; None where nothing was."""
    return _read.pop(adapter_id, None)


def spans_of(content: Bytes) -> Iterator[tuple[str, Span, int]]:
    """Yields each tensor's name, its span, and the byte at which it begins."""
    n_header = int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    begin = _LENGTH_BYTES + n_header
    header: dict[str, Any] = msgspec.json.decode(content[_LENGTH_BYTES:begin].tobytes())
    for name, fields in header.items():
        if name != "__metadata__":
            span = msgspec.convert(fields, Span)
            yield name, span, begin + span.data_offsets[0]
