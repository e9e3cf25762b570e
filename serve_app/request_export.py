"""Writes records of requests to a Parquet file, page by page, however many there are."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_TIME = pa.timestamp("us", tz="UTC")
_TEXTS = ("id", "request_id", "tenant", "key", "model", "adapter", "outcome", "engine")
_COUNTS = ("status", "prompt_tokens", "cached_tokens", "completion_tokens", "migrations")
_NUMBERS = (
    "cost_usd",
    "total_ms",
    "ttft_ms",
    "gateway_ms",
    "queue_ms",
    "router_ms",
    "adapter_load_ms",
    "engine_ttft_ms",
    "ledger_ms",
)
_TIMES = ("started", "ended")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXTS]
    + [(name, pa.int64()) for name in _COUNTS]
    + [(name, pa.float64()) for name in _NUMBERS]
    + [(name, _TIME) for name in _TIMES]
)
"""Names are the admin API's; times are timestamps instead of seconds."""


def write_parquet(file: Path, pages: Iterable[Sequence[Mapping[str, Any]]]) -> int:
    """Writes records as the admin API gives them; returns how many. Replaces the file at the end.

    Raises:
        OSError: The file cannot be written.
    """
    n_rows = 0
    unfinished = file.with_name(f".{file.name}.part")
    try:
        with pq.ParquetWriter(unfinished, SCHEMA, compression="zstd") as writer:
            for page in pages:
                writer.write_table(pa.Table.from_pylist([_row(r) for r in page], SCHEMA))
                n_rows += len(page)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return n_rows


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: record[name] for name in (*_TEXTS, *_COUNTS, *_NUMBERS)}
    return row | {name: round(record[f"{name}_s"] * 1e6) for name in _TIMES}
