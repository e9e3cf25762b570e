"""Usage records, and a place to store them that fails when it is told to."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from serve_app.errors import StoreError, StoreRefusedError
from serve_app.names import TenantId
from serve_app.usage import UsageRecord, new_request_id


def make_record(**changes: Any) -> UsageRecord:
    """Returns what a request used, with the changes over it."""
    fields: dict[str, Any] = {
        "request_id": new_request_id(),
        "tenant_id": TenantId("a"),
        "model": "tiny",
        "outcome": "finished",
        "started_s": 1_700_000_000.0,
        "ended_s": 1_700_000_001.0,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cost_usd": 0.001,
    }
    return UsageRecord(**(fields | changes))


class FakeSink:
    """Keeps records in memory, each request once, as the database does."""

    def __init__(self) -> None:
        self.rows: dict[str, UsageRecord] = {}
        self.batches: list[int] = []
        self.is_away = False
        self.takes_s = 0.0
        self.refuses: Callable[[UsageRecord], bool] = lambda record: False

    async def store(self, records: Sequence[UsageRecord]) -> None:
        """Stores records (`UsageSink`)."""
        await asyncio.sleep(self.takes_s)
        if self.is_away:
            raise StoreError("The store is away.")
        if any(self.refuses(record) for record in records):
            raise StoreRefusedError("A value is out of bounds.")
        self.batches.append(len(records))
        for record in records:
            self.rows.setdefault(record.request_id, record)
