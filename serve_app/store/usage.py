"""Stored usage: one row a request, and sums by day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.names import TenantId
from serve_app.store.tables import RequestTextRow, Table, UsageDayRow, UsageRow
from serve_app.usage import UsageRecord

Dimension = Literal["day", "tenant", "model", "adapter"]
DIMENSIONS: tuple[Dimension, ...] = ("day", "tenant", "model", "adapter")

_SUMS = (
    "requests",
    "failed",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_nano_usd",
)
_ROWS_AT_ONCE = 32
"""Rows of one statement. Drivers keep what they have prepared, a statement for each number of rows,
and the more rows the more memory."""
_COLUMN_OF = {
    "day": UsageDayRow.day,
    "tenant": UsageDayRow.tenant_id,
    "model": UsageDayRow.model,
    "adapter": UsageDayRow.adapter,
}


def today() -> date:
    """The day (UTC) that a request which ends now counts for."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class UsageQuery:
    """Which usage to sum, and by what.

    Attributes:
        first: First day (UTC).
        last: Last day, included.
        by: What to keep apart; sums over everything else.
        tenant_id: Only this tenant's. None means all.
        model: Only of this base model. None means all.
        adapter: Only of this adapter; '' means the base model itself. None means all.
        most_rows: Rows to return at most.
    """

    first: date
    last: date
    by: tuple[Dimension, ...] = DIMENSIONS
    tenant_id: TenantId | None = None
    model: str | None = None
    adapter: str | None = None
    most_rows: int = 10_000


@dataclass(frozen=True)
class UsageSum:
    """Usage that belongs together.

    Attributes:
        group: What was kept apart, such as `{"day": "2026-01-31", "model": "llama"}`.
        requests: Requests that ended, however they ended.
        failed: Those among them that failed.
        cancelled: Those among them whose client went away.
        prompt_tokens: Prompt tokens.
        cached_tokens: Those among them whose work was found done.
        completion_tokens: Generated tokens.
        cost_nano_usd: Cost in billionths of a US dollar.
    """

    group: dict[str, str]
    requests: int
    failed: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nano_usd: int

    @property
    def cost_usd(self) -> float:
        """Cost in US dollars."""
        return self.cost_nano_usd / 1e9


class UsageRepository:
    """Adds and sums usage within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._is_sqlite = session.get_bind().dialect.name == "sqlite"

    async def add(self, records: Sequence[UsageRecord]) -> int:
        """Adds what is not there yet, to rows and sums alike. Returns how many were new."""
        by_id = {record.request_id: record for record in records}
        if not by_id:
            return 0
        rows = [_as_row(by_id[request_id]) for request_id in sorted(by_id)]
        insert = self._insert(UsageRow).on_conflict_do_nothing().returning(UsageRow.request_id)
        options = {"insertmanyvalues_page_size": _ROWS_AT_ONCE}
        fresh = (await self._session.scalars(insert, rows, execution_options=options)).all()
        records = [by_id[request_id] for request_id in fresh]
        await self._add_texts(records)
        await self._add_to_days([record for record in records if record.outcome != "refused"])
        return len(fresh)

    async def _add_texts(self, records: Sequence[UsageRecord]) -> None:
        rows = [
            {
                "request_id": record.request_id,
                "tenant_id": record.tenant_id,
                "ended_s": record.ended_s,
                **msgspec.structs.asdict(record.texts),
            }
            for record in records
            if record.texts is not None
        ]
        if rows:
            await self._session.execute(self._insert(RequestTextRow), rows)

    async def _add_to_days(self, records: Sequence[UsageRecord]) -> None:
        days: dict[tuple[date, str, str, str], dict[str, int]] = {}
        for record in records:
            place = (record.day, record.tenant_id, record.model, record.adapter)
            sums = days.setdefault(place, dict.fromkeys(_SUMS, 0))
            for name, amount in _as_sums(record).items():
                sums[name] += amount
        if not days:
            return
        insert = self._insert(UsageDayRow)
        upsert = insert.on_conflict_do_update(
            index_elements=["day", "tenant_id", "model", "adapter"],
            set_={name: getattr(UsageDayRow, name) + insert.excluded[name] for name in _SUMS},
        )
        # In order, so that two writers which touch the same sums never wait for each other.
        rows = [
            {"day": day, "tenant_id": tenant, "model": model, "adapter": adapter, **sums}
            for (day, tenant, model, adapter), sums in sorted(days.items())
        ]
        await self._session.execute(upsert, rows)

    def _insert(self, table: type[Table]) -> Any:
        return sqlite.insert(table) if self._is_sqlite else postgresql.insert(table)

    async def sum(self, query: UsageQuery) -> list[UsageSum]:
        """Returns sums, in the order of what they are kept apart by."""
        apart = [_COLUMN_OF[dimension] for dimension in query.by]
        sums = [func.sum(getattr(UsageDayRow, name)) for name in _SUMS]
        statement = select(*apart, *sums).where(UsageDayRow.day.between(query.first, query.last))
        wanted = (
            (UsageDayRow.tenant_id, query.tenant_id),
            (UsageDayRow.model, query.model),
            (UsageDayRow.adapter, query.adapter),
        )
        for column, value in wanted:
            if value is not None:
                statement = statement.where(column == value)
        if apart:
            statement = statement.group_by(*apart).order_by(*apart)
        rows = (await self._session.execute(statement.limit(query.most_rows))).all()
        n = len(apart)
        return [
            UsageSum(
                dict(zip(query.by, map(str, row[:n]), strict=True)),
                *(_as_int(amount) for amount in row[n:]),
            )
            for row in rows
        ]


def _as_int(amount: Any) -> int:
    """Sums are None over nothing, and decimals in PostgreSQL."""
    return int(amount or 0)


def _as_row(record: UsageRecord) -> dict[str, Any]:
    fields = msgspec.structs.asdict(record)
    del fields["texts"], fields["cost_usd"]
    return {**fields, "cost_nano_usd": record.cost_nano_usd}


def _as_sums(record: UsageRecord) -> dict[str, int]:
    return {
        "requests": 1,
        "failed": int(record.outcome == "failed"),
        "cancelled": int(record.outcome == "cancelled"),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "cost_nano_usd": record.cost_nano_usd,
    }
