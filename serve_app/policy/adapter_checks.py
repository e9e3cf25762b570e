"""Whether an adapter's weights are what they should be: their file's form, names and sizes.

Inputs: the first bytes and the size of `adapter_model.safetensors`, what its `adapter_config.json`
says, and the base model's shape.
Rule: the header describes every byte of the file once; the tensors are pairs of two matrices, one
pair for each changed module, of the sizes that the base model's module and the rank ask for.

Invariants (tests/property/test_adapter_checks.py):
1. any_header_is_read_or_refused: no input raises anything but AdapterRefusedError.
2. entries_cover_the_file: what is read describes each byte after the header exactly once.
3. pairs_fit_the_base: what is accepted has the base model's sizes, and a rank within the bound.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.errors import AdapterRefusedError
from serve_app.policy.adapter_config import AdapterConfig, read_object
from serve_app.policy.adapter_shapes import ModelShape

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_HEADER_BYTES = 16 << 20

_LENGTH_BYTES = 8
_BYTES_OF = {"F32": 4, "BF16": 2, "F16": 2}
_NAME = re.compile(r"base_model\.model\.([A-Za-z0-9_.]{1,500})\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file.

    Attributes:
        name: As in the file.
        dtype: safetensors' word: F32, BF16 or F16.
        shape: Rows and columns.
        begin: Its first byte, counted from the file's start.
        end: The byte after its last.
    """

    name: str
    dtype: str
    shape: tuple[int, int]
    begin: int
    end: int


@dataclass(frozen=True)
class Pair:
    """The two matrices that change one module: B x A x factor is added to its weight.

    Attributes:
        module: The module's path in the base model.
        a: Rank rows, a column for each feature that goes in.
        b: A row for each feature that comes out, rank columns.
        factor: What the product is multiplied by.
    """

    module: str
    a: Entry
    b: Entry
    factor: float

    @property
    def rank(self) -> int:
        """How many numbers the module's change goes through."""
        return self.a.shape[0]


def header_end(head: bytes, n_bytes: int) -> int:
    """Return where a file's header ends.

    Args:
        head: The file's first 8 bytes.
        n_bytes: The file's size.

    Raises:
        AdapterRefusedError: It is no safetensors file, or its header is too long.
    """
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if len(head) < _LENGTH_BYTES or n_bytes < _LENGTH_BYTES or length > n_bytes - _LENGTH_BYTES:
        raise AdapterRefusedError(
            f"{WEIGHTS_FILE} is no safetensors file, or was cut off: it has {n_bytes} bytes and "
            f"begins with a header's length of {length}."
        )
    if length > MAX_HEADER_BYTES:
        raise AdapterRefusedError(
            f"{WEIGHTS_FILE} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read."
        )
    return _LENGTH_BYTES + length


def read_header(header: bytes, n_bytes: int) -> list[Entry]:
    """Return a file's tensors, in the order of their bytes.

    Args:
        header: The file's bytes up to `header_end`.
        n_bytes: The file's size.

    Raises:
        AdapterRefusedError: The header does not describe the file.
    """
    fields = read_object(header[_LENGTH_BYTES:], f"the header of {WEIGHTS_FILE}")
    fields.pop("__metadata__", None)
    if not fields:
        raise AdapterRefusedError(f"{WEIGHTS_FILE} holds no tensors.")
    start = len(header)
    entries = [_read_entry(name, value, start) for name, value in fields.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end, entry.name))
    at = start
    for entry in entries:
        if entry.begin != at:
            raise AdapterRefusedError(
                f"{WEIGHTS_FILE}: tensor {_show(entry.name)} begins at byte {entry.begin} of the "
                f"file, where {at} was expected; tensors neither overlap nor leave gaps."
            )
        at = entry.end
    if at != n_bytes:
        raise AdapterRefusedError(
            f"{WEIGHTS_FILE} has {n_bytes} bytes while its header describes {at}; "
            "it was cut off, or something was added."
        )
    return entries


def _read_entry(name: str, value: Any, start: int) -> Entry:
    value = value if isinstance(value, dict) else {}
    dtype, shape, span = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BYTES_OF:
        raise AdapterRefusedError(
            f"{WEIGHTS_FILE}: tensor {_show(name)} has dtype {_show(dtype)}; LoRA matrices are "
            f"{', '.join(_BYTES_OF)}."
        )
    if not _are_sizes(shape) or not _are_sizes(span):
        raise AdapterRefusedError(
            f"{WEIGHTS_FILE}: tensor {_show(name)} has shape {_show(shape)} and bytes "
            f"{_show(span)}; a LoRA matrix has two dimensions, and bytes from and to."
        )
    (rows, columns), (begin, end) = shape, span
    if end - begin != rows * columns * _BYTES_OF[dtype]:
        raise AdapterRefusedError(
            f"{WEIGHTS_FILE}: tensor {_show(name)} of {rows} x {columns} {dtype} cannot have "
            f"bytes {begin} to {end}."
        )
    return Entry(name, dtype, (rows, columns), start + begin, start + end)


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in value)
    )


def match_pairs(
    entries: Iterable[Entry], config: AdapterConfig, shape: ModelShape, max_rank: int
) -> list[Pair]:
    """Return the pairs of matrices, by their module's path.

    Args:
        entries: What the weights' file holds.
        config: What the adapter says of itself.
        shape: What its base model asks for.
        max_rank: The engine's.

    Raises:
        AdapterRefusedError: Something is missing, too much, or of another size.
    """
    found: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is None:
            raise AdapterRefusedError(
                f"{WEIGHTS_FILE}: tensor {_show(entry.name)} is no LoRA matrix; PEFT's names are "
                "base_model.model.<module>.lora_A.weight and .lora_B.weight."
            )
        found.setdefault(match[1], {})[match[2]] = entry
    return [_match_pair(m, found[m], config, shape, max_rank) for m in sorted(found)]


def _match_pair(
    module: str,
    halves: Mapping[str, Entry],
    config: AdapterConfig,
    shape: ModelShape,
    max_rank: int,
) -> Pair:
    size = shape.size_of(module)
    if size is None:
        raise AdapterRefusedError(
            f"{WEIGHTS_FILE} changes {_show(module)}, which the base model does not have or "
            f"adapters cannot change. It has {shape.n_layers} layers, each with "
            f"{', '.join(sorted(shape.modules))}."
        )
    if len(halves) < 2:
        there = next(iter(halves))
        raise AdapterRefusedError(
            f"{WEIGHTS_FILE} has lora_{there} of {_show(module)} and not the other matrix."
        )
    rank = config.rank_of(module)
    if rank > max_rank:
        raise AdapterRefusedError(
            f"The rank of {_show(module)} is {rank} while the engine takes at most {max_rank}; "
            "train it with a lower rank, or raise the model's adapters.max_rank."
        )
    expected = {"A": (rank, size[0]), "B": (size[1], rank)}
    for half, entry in sorted(halves.items()):
        if entry.shape != expected[half]:
            raise AdapterRefusedError(
                f"lora_{half} of {_show(module)} is {_cross(entry.shape)} while the base model's "
                f"{size[0]} features in, {size[1]} out and rank {rank} ask for "
                f"{_cross(expected[half])}; it was trained for another base model, or its "
                "adapter_config.json belongs to another adapter."
            )
    return Pair(module, halves["A"], halves["B"], config.factor_of(module))


def _cross(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _show(value: object) -> str:
    return repr(value)[:120]
