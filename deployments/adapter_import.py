"""Turns an adapter as its author saved it into the one form that engines load.

alpha (and rslora) is multiplied into B, the dtype is the model's, and alpha = r: so an engine
copies and multiplies nothing. numpy alone: it runs in a worker that starts fast and takes little.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.adapter_files import AdapterFolder, Stamp
from serve_app.errors import AdapterAwayError, AdapterRefusedError
from serve_app.policy.adapter_checks import (
    WEIGHTS_FILE,
    Entry,
    Pair,
    header_end,
    match_pairs,
    read_header,
)
from serve_app.policy.adapter_config import CONFIG_FILE, MAX_CONFIG_BYTES, read_config
from serve_app.policy.adapter_shapes import Dtype, ModelShape

_PICKLES = ("adapter_model.bin", "adapter_model.pt")
_WORDS: dict[Dtype, str] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_N_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_EXPONENT_BF16 = 0x7F80

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RawAdapter:
    """An adapter's files as they were read, both at one time.

    Attributes:
        config: `adapter_config.json`.
        weights: `adapter_model.safetensors`.
        mark: Another one when either file at the source is another.
    """

    config: bytes
    weights: bytes
    mark: str

    @cached_property
    def version(self) -> str:
        """SHA-256 of both files."""
        parts = [hashlib.sha256(content).digest() for content in (self.config, self.weights)]
        return hashlib.sha256(b"".join(parts)).hexdigest()


@dataclass(frozen=True)
class CheckedAdapter:
    """An adapter that fits its base model, ready to be written down.

    Attributes:
        raw: Its files.
        pairs: Its matrices, by module.
        dtype: What they are to be stored in.
    """

    raw: RawAdapter
    pairs: tuple[Pair, ...]
    dtype: Dtype

    @cached_property
    def rank(self) -> int:
        """Its greatest rank."""
        return max(pair.rank for pair in self.pairs)

    @property
    def modules(self) -> tuple[str, ...]:
        """Last names of the modules that it changes."""
        return tuple(sorted({pair.module.rpartition(".")[2] for pair in self.pairs}))

    @property
    def n_bytes(self) -> int:
        """Size of its weights' file once written."""
        return len(self._header) + sum(e - b for _, b, e in self._spans())

    def config(self) -> bytes:
        """Its `adapter_config.json` once written."""
        ranks = {pair.module: pair.rank for pair in self.pairs if pair.rank != self.rank}
        content = {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.rank,
            "bias": "none",
            "target_modules": list(self.modules),
        }
        if ranks:
            content |= {"rank_pattern": ranks, "alpha_pattern": ranks}
        return json.dumps(content).encode()

    def weights(self) -> Iterator[bytes]:
        """Its weights' file, in parts.

        Raises:
            AdapterRefusedError: A number is not finite, or does not fit the dtype.
        """
        yield self._header
        for pair in self.pairs:
            for entry, factor in ((pair.a, 1.0), (pair.b, pair.factor)):
                yield _convert(self.raw.weights, entry, factor, _WORDS[self.dtype])

    @property
    def _header(self) -> bytes:
        fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for entry, begin, end in self._spans():
            shape, dtype = list(entry.shape), _WORDS[self.dtype]
            fields[entry.name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(fields, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _spans(self) -> Iterator[tuple[Entry, int, int]]:
        at = 0
        for entry in (entry for pair in self.pairs for entry in (pair.a, pair.b)):
            end = at + entry.shape[0] * entry.shape[1] * _N_BYTES[_WORDS[self.dtype]]
            yield entry, at, end
            at = end


def read_adapter(folder: AdapterFolder, max_bytes: int) -> RawAdapter:
    """Read an adapter's files.

    Raises:
        AdapterRefusedError: One is missing or too long.
        AdapterAwayError: They changed meanwhile, or could not be read.
    """
    before = stamp_adapter(folder, max_bytes)
    config, weights = before
    raw = RawAdapter(
        folder.read(CONFIG_FILE, config.n_bytes),
        folder.read(WEIGHTS_FILE, weights.n_bytes),
        mark_of(before),
    )
    if stamp_adapter(folder, max_bytes) != before:
        raise AdapterAwayError("Its files changed while they were read.", 1.0)
    return raw


def stamp_adapter(folder: AdapterFolder, max_bytes: int) -> tuple[Stamp, Stamp]:
    """Look at an adapter's files without reading them.

    Raises:
        AdapterRefusedError: One is missing or too long.
    """
    config = _find(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
    if config is None:
        raise AdapterRefusedError(f"There is no {CONFIG_FILE} in its folder.", is_missing=True)
    weights = _find(folder, WEIGHTS_FILE, max_bytes)
    if weights is not None:
        return config, weights
    pickle = next((name for name in _PICKLES if folder.stamp(name) is not None), None)
    if pickle is not None:
        raise AdapterRefusedError(
            f"It has {pickle} and no {WEIGHTS_FILE}. The first is a pickle, which can run any "
            "program and is never opened; save the adapter with safe_serialization=True."
        )
    raise AdapterRefusedError(f"There is no {WEIGHTS_FILE} in its folder.", is_missing=True)


def mark_of(stamps: Iterable[Stamp]) -> str:
    """Return what is another text when a file is another."""
    return hashlib.sha256("\n".join(stamp.mark for stamp in stamps).encode()).hexdigest()


def _find(folder: AdapterFolder, name: str, most_bytes: int) -> Stamp | None:
    found = folder.stamp(name)
    if found is not None and found.n_bytes > most_bytes:
        raise AdapterRefusedError(
            f"{name} has {found.n_bytes} bytes; at most {most_bytes} are taken."
        )
    return found


def check_adapter(raw: RawAdapter, shape: ModelShape, max_rank: int) -> CheckedAdapter:
    """Return the adapter if it fits its base model; its numbers are looked at as they are written.

    Raises:
        AdapterRefusedError: It does not.
    """
    config = read_config(raw.config)
    end = header_end(raw.weights[:8], len(raw.weights))
    entries = read_header(raw.weights[:end], len(raw.weights))
    return CheckedAdapter(raw, tuple(match_pairs(entries, config, shape, max_rank)), shape.dtype)


def _convert(content: bytes, entry: Entry, factor: float, dtype: str) -> bytes:
    values = _READ[entry.dtype](content[entry.begin : entry.end])
    if not np.isfinite(values).all():
        raise AdapterRefusedError(
            f"{entry.name!r} holds numbers that are not finite (NaN or infinity): its training "
            "went wrong, or the file was damaged. Save it from a checkpoint before that."
        )
    with np.errstate(over="ignore"):
        scaled = values if factor == 1.0 else values * np.float32(factor)
        written, is_finite = _WRITE[dtype](scaled)
    if not is_finite:
        raise AdapterRefusedError(
            f"{entry.name!r} holds numbers too large for {dtype}, which the engine computes with."
        )
    return written


def _read_bf16(content: bytes) -> Floats:
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


def _write_bf16(values: Floats) -> tuple[bytes, bool]:
    """Rounds to the nearest, ties to even, as PyTorch does."""
    bits = values.view(np.uint32)
    rounding = bits >> 16
    rounding &= 1
    rounding += 0x7FFF
    rounding += bits
    rounding >>= 16
    rounded = rounding.astype("<u2")
    rounding &= _EXPONENT_BF16
    return rounded.tobytes(), not bool((rounding == _EXPONENT_BF16).any())


def _write_f16(values: Floats) -> tuple[bytes, bool]:
    halves = values.astype("<f2")
    return halves.tobytes(), bool(np.isfinite(halves).all())


_READ: dict[str, Callable[[bytes], Floats]] = {
    "F32": lambda content: np.frombuffer(content, "<f4"),
    "F16": lambda content: np.frombuffer(content, "<f2").astype(np.float32),
    "BF16": _read_bf16,
}
_WRITE: dict[str, Callable[[Floats], tuple[bytes, bool]]] = {
    "F32": lambda values: (values.tobytes(), bool(np.isfinite(values).all())),
    "F16": _write_f16,
    "BF16": _write_bf16,
}
