"""Reads adapters' weights into memory beside the step loop, for the loop to take over uncopied.

    read_ahead(id, folder)  on any thread: the file comes into memory while Python's lock is free
    take(id)                on the core's thread: its bytes, of which tensors then are parts
    discard(id)             when nobody is to take them any more

Engines whose workers are processes of their own find nothing here, and read from the page cache.
Files are those that import workers wrote: their headers need no checks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

WEIGHTS_FILE = "adapter_model.safetensors"
_LENGTH_BYTES = 8

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_read: dict[int, Bytes] = {}
"""By adapter."""


class Span(msgspec.Struct, frozen=True):
    """Where a tensor lies in a file, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_ahead(adapter_id: int, folder: Path) -> None:
    """Reads an adapter's weights, if they are there.

    Raises:
        OSError: They cannot be read.
    """
    path = folder / WEIGHTS_FILE
    if not path.exists():
        return
    with path.open("rb", buffering=0) as file:
        content: Bytes = np.empty(path.stat().st_size, np.uint8)
        left = content.data
        while left and (n_bytes := file.readinto(left)):
            left = left[n_bytes:]
    if not left:
        _read[adapter_id] = content


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
