"""Records of single requests: found, read and deleted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import CursorResult, Select, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.config_records import RecordsSettings
from serve_app.names import TenantId
from serve_app.store.database import Database
from serve_app.store.tables import RequestTextRow, UsageRow

DELETED_AT_ONCE = 1000
"""Rows: few enough that others who write hardly wait."""

Kind = Literal["texts", "requests"]
_DAY_S = 86_400.0


@dataclass(frozen=True)
class RequestQuery:
    """Which requests. None is any.

    Attributes:
        id: Ours, or the `x-request-id` that the client got.
        tenant_id: Whose.
        model: The base model.
        adapter: The adapter's full name; '' is the base model itself.
        outcome: How it ended.
        since_s: Ended at or after this, in seconds since 1970.
        until_s: Ended before this.
        slower_than_s: Took longer from its arrival to its end.
        ttft_over_s: Took longer to its first token.
        before_id: Only those behind this one, in the order in which they are listed.
        most_rows: Rows to return at most.
    """

    id: str | None = None
    tenant_id: TenantId | None = None
    model: str | None = None
    adapter: str | None = None
    outcome: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    slower_than_s: float | None = None
    ttft_over_s: float | None = None
    before_id: str | None = None
    most_rows: int = 100


class RequestRepository:
    """Reads and deletes records within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def find(self, query: RequestQuery) -> Sequence[UsageRow]:
        """Returns rows, the latest first: ids begin with the time of a request's end."""
        statement = _filter(select(UsageRow), query)
        statement = statement.order_by(UsageRow.request_id.desc()).limit(query.most_rows)
        return (await self._session.scalars(statement)).all()

    async def texts_of(self, request_id: str) -> RequestTextRow | None:
        """Returns what was asked and answered; None where that is not kept, or no longer."""
        return await self._session.get(RequestTextRow, request_id)

    async def have_texts(self, request_ids: Sequence[str]) -> set[str]:
        """Returns those among them of which texts are kept."""
        wanted = select(RequestTextRow.request_id).where(RequestTextRow.request_id.in_(request_ids))
        return set((await self._session.scalars(wanted)).all())

    async def delete_some(
        self, kind: Kind, *, tenant_id: TenantId | None = None, before_s: float | None = None
    ) -> int:
        """Deletes a batch of what has ended before a time; returns how many there were.

        To be called again until it returns fewer than `DELETED_AT_ONCE`. Sums of usage stay.

        Args:
            kind: Texts alone, or the records too, whose texts are to be deleted first.
            tenant_id: Whose; None is everyone's.
            before_s: In seconds since 1970; None is all.
        """
        table: Any = RequestTextRow if kind == "texts" else UsageRow
        chosen = select(table.request_id)
        if tenant_id is not None:
            chosen = chosen.where(table.tenant_id == tenant_id)
        if before_s is not None:
            chosen = chosen.where(table.ended_s < before_s)
        chosen = chosen.order_by(table.ended_s).limit(DELETED_AT_ONCE)
        done = await self._session.execute(delete(table).where(table.request_id.in_(chosen)))
        assert isinstance(done, CursorResult)
        return int(done.rowcount)


async def delete_all(
    database: Database, kind: Kind, tenant_id: TenantId | None, before_s: float | None
) -> int:
    """Deletes batch by batch what `RequestRepository.delete_some` chooses; returns how many.

    Raises:
        StoreError: The database is away; what was deleted by then stays so.
    """
    n_deleted = 0
    while True:
        async with database.write() as session:
            n_now = await RequestRepository(session).delete_some(
                kind, tenant_id=tenant_id, before_s=before_s
            )
        n_deleted += n_now
        if n_now < DELETED_AT_ONCE:
            return n_deleted


def plan_retention(
    settings: RecordsSettings, now: Callable[[], float] = time.time
) -> list[tuple[Kind, float]]:
    """Returns what is due to be deleted: kinds, and the time before which."""
    due: list[tuple[Kind, float]] = [("texts", now() - settings.keep_texts_days * _DAY_S)]
    if settings.keep_days is not None:
        before_s = now() - settings.keep_days * _DAY_S
        due += [("texts", before_s), ("requests", before_s)]
    return due


def _filter(statement: Select[UsageRow], query: RequestQuery) -> Select[UsageRow]:
    conditions: list[tuple[Any, Callable[[Any], Any]]] = [
        (
            query.id,
            lambda v: or_(UsageRow.request_id == v, UsageRow.client_request_id == v),
        ),
        (query.tenant_id, lambda v: UsageRow.tenant_id == v),
        (query.model, lambda v: UsageRow.model == v),
        (query.adapter, lambda v: UsageRow.adapter == v),
        (query.outcome, lambda v: UsageRow.outcome == v),
        (query.since_s, lambda v: UsageRow.ended_s >= v),
        (query.until_s, lambda v: UsageRow.ended_s < v),
        (query.slower_than_s, lambda v: UsageRow.total_s > v),
        (query.ttft_over_s, lambda v: UsageRow.ttft_s > v),
        (query.before_id, lambda v: UsageRow.request_id < v),
    ]
    for value, condition in conditions:
        if value is not None:
            statement = statement.where(condition(value))
    return statement
