"""Reports of usage: everyone's for administrators, a tenant's own for whoever has its key."""

import asyncio
import csv
import io
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, get_args

from fastapi import Depends, FastAPI, Query
from starlette.responses import JSONResponse, Response

from serve_app.gateway.accounts import Accounts
from serve_app.gateway.admin import ERRORS
from serve_app.gateway.auth import check_scope, current_caller
from serve_app.gateway.error_body import ApiError
from serve_app.names import TenantId
from serve_app.store.usage import Dimension, UsageQuery, UsageRepository, UsageSum

_MAX_ROWS = 50_000
_DEFAULT_DAYS = 30
_AMOUNTS = (
    "requests",
    "failed",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cost_usd",
)
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/csv": {}}},
    **ERRORS,
}

Format = Literal["json", "csv"]


class _Asked:
    """What both reports can be asked, as query parameters."""

    def __init__(
        self,
        first: Annotated[date | None, Query(alias="from", description="First day (UTC)")] = None,
        last: Annotated[date | None, Query(alias="to", description="Last day, included")] = None,
        by: Annotated[
            str, Query(description="Comma-separated: day, tenant, model, adapter; '' for one sum")
        ] = "day,tenant,model,adapter",
        model: Annotated[str | None, Query(max_length=256)] = None,
        adapter: Annotated[str | None, Query(max_length=256)] = None,
        format: Annotated[Format, Query()] = "json",
    ) -> None:
        self.last = last or datetime.now(UTC).date()
        self.first = first or self.last - timedelta(days=_DEFAULT_DAYS - 1)
        self.by = by
        self.model = model
        self.adapter = adapter
        self.format = format

    def as_query(self, tenant: str | None) -> UsageQuery:
        """Returns it in the store's words. Raises ApiError: 400."""
        if self.first > self.last:
            raise ApiError(
                400, f"from is {self.first} while to is {self.last}; swap them.", param="from"
            )
        return UsageQuery(
            first=self.first,
            last=self.last,
            by=_read_dimensions(self.by),
            tenant_id=None if tenant is None else TenantId(_plain(tenant)),
            model=None if self.model is None else _plain(self.model),
            adapter=None if self.adapter is None else _plain(self.adapter),
            most_rows=_MAX_ROWS + 1,
        )


def add_usage_routes(app: FastAPI, accounts: Accounts) -> None:
    """Adds the two reports."""

    @app.get("/admin/usage", tags=["admin"], responses=_ANSWERS)
    async def usage(
        asked: Annotated[_Asked, Depends()],
        tenant: Annotated[str | None, Query(max_length=64)] = None,
    ) -> Response:
        """Usage of all tenants, by day, tenant, model and adapter, as JSON or CSV.

        With a fleet, the JSON also says what its nodes cost in these days, and who bears how much.
        """
        check_scope(current_caller.get(), "admin")
        return await _report(accounts, asked, tenant, with_fleet=True)

    @app.get("/v1/usage", tags=["usage"], responses=_ANSWERS)
    async def own_usage(asked: Annotated[_Asked, Depends()]) -> Response:
        """Usage of the tenant whose key this is."""
        return await _report(accounts, asked, current_caller.get().tenant_id)


async def _report(
    accounts: Accounts, asked: _Asked, tenant: str | None, *, with_fleet: bool = False
) -> Response:
    query = asked.as_query(tenant)
    async with accounts.read() as session:
        sums = await UsageRepository(session).sum(query)
    if len(sums) > _MAX_ROWS:
        raise ApiError(
            400,
            f"The report has more than {_MAX_ROWS} rows. Ask for fewer days (from, to), for one "
            "tenant or model, or keep less apart (by).",
            param="by",
        )
    rows = [{**each.group, **_amounts(each)} for each in sums]
    if asked.format == "csv":
        return _as_csv(query, rows)
    answer = {
        "object": "usage",
        "from": query.first.isoformat(),
        "to": query.last.isoformat(),
        "by": list(query.by),
        "data": rows,
    }
    fleet = await _fleet_costs(accounts, query) if with_fleet else None
    return JSONResponse(answer if fleet is None else answer | {"fleet": fleet})


async def _fleet_costs(accounts: Accounts, query: UsageQuery) -> dict[str, Any] | None:
    """Returns what the fleet cost in these days, whatever else the report leaves out."""
    costs = accounts.fleet_costs
    if costs is None:
        return None
    everyone = UsageQuery(first=query.first, last=query.last, by=("tenant",), most_rows=_MAX_ROWS)
    async with accounts.read() as session:
        sums = await UsageRepository(session).sum(everyone)
    return await asyncio.to_thread(costs.report, query.first, query.last, sums, time.time())


def _amounts(usage: UsageSum) -> dict[str, Any]:
    return {name: getattr(usage, name) for name in _AMOUNTS}


def _as_csv(query: UsageQuery, rows: Sequence[dict[str, Any]]) -> Response:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*query.by, *_AMOUNTS])
    writer.writeheader()
    writer.writerows(rows)
    name = f"usage-{query.first}-{query.last}.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _read_dimensions(text: str) -> tuple[Dimension, ...]:
    known: tuple[Dimension, ...] = get_args(Dimension)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ApiError(
            400,
            f"by has {unknown[0][:64]!r}, which is not one of: {', '.join(known)}.",
            param="by",
        )
    return tuple(name for name in known if name in names)


def _plain(text: str) -> str:
    # PostgreSQL has no such character, so nothing is named by it.
    return text.replace("\x00", "")
