"""The admin API of request records."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query

from serve_app.gateway.accounts import Accounts
from serve_app.gateway.admin import ERRORS, require_admin
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.request_forms import (
    RequestDetail,
    RequestList,
    RequestsDeleted,
    view_detail,
    view_request,
)
from serve_app.names import TenantId
from serve_app.store.requests import Kind, RequestQuery, RequestRepository
from serve_app.usage import Outcome

_MAX_ROWS = 1000
_DAY_S = 86_400.0
_Text = Annotated[str | None, Query(max_length=256)]
_Seconds = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False)]


class _Asked:
    """Which requests, as query parameters."""

    def __init__(
        self,
        id: Annotated[_Text, Query(description="Ours, or the answer's x-request-id")] = None,
        tenant: _Text = None,
        model: _Text = None,
        adapter: Annotated[_Text, Query(description="'' is the base model itself")] = None,
        outcome: Outcome | None = None,
        since: Annotated[_Seconds, Query(description="Ended at or after; seconds since 1970")] = (
            None
        ),
        until: Annotated[_Seconds, Query(description="Ended before; seconds since 1970")] = None,
        slower_than_s: Annotated[_Seconds, Query(description="From arrival to end")] = None,
        ttft_over_s: Annotated[_Seconds, Query(description="From arrival to first token")] = None,
        before: Annotated[_Text, Query(description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=_MAX_ROWS)] = 100,
    ) -> None:
        self.limit = limit
        self.query = RequestQuery(
            id=_plain(id),
            tenant_id=None if tenant is None else TenantId(_plain(tenant) or ""),
            model=_plain(model),
            adapter=_plain(adapter),
            outcome=outcome,
            since_s=since,
            until_s=until,
            slower_than_s=slower_than_s,
            ttft_over_s=ttft_over_s,
            before_id=_plain(before),
            most_rows=limit + 1,
        )


def add_request_routes(app: FastAPI, accounts: Accounts) -> None:
    """Adds the routes under /admin/requests."""
    router = APIRouter(
        prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)], responses=ERRORS
    )

    @router.get("/requests")
    async def list_requests(asked: Annotated[_Asked, Depends()]) -> RequestList:
        """Requests that have ended, the latest first."""
        async with accounts.read() as session:
            repository = RequestRepository(session)
            rows = await repository.find(asked.query)
            kept = await repository.have_texts([row.request_id for row in rows])
        page = rows[: asked.limit]
        has_more = len(rows) > asked.limit
        return RequestList(
            data=tuple(view_request(row, has_texts=row.request_id in kept) for row in page),
            has_more=has_more,
            next=page[-1].request_id if has_more else None,
        )

    # Clients may name their requests as they like, also with slashes.
    @router.get("/requests/{request_id:path}")
    async def show_request(request_id: str) -> RequestDetail:
        """The latest request of this id, ours or the answer's `x-request-id`, with its texts."""
        async with accounts.read() as session:
            repository = RequestRepository(session)
            rows = await repository.find(RequestQuery(id=_plain(request_id), most_rows=1))
            if not rows:
                raise _no_request(request_id)
            return view_detail(rows[0], await repository.texts_of(rows[0].request_id))

    @router.delete("/requests")
    async def delete_requests(
        what: Annotated[Kind, Query(description="Prompts and answers, or the records too")],
        tenant: _Text = None,
        older_than_days: Annotated[
            float | None, Query(ge=0, le=36_500, allow_inf_nan=False)
        ] = None,
    ) -> RequestsDeleted:
        """Deletes a tenant's, or everyone's of some age. Sums of usage stay."""
        if tenant is None and older_than_days is None:
            raise ApiError(
                400,
                "Neither tenant nor older_than_days is given. Name at least one of them; "
                "older_than_days=0 is everything.",
                param="tenant",
            )
        before_s = None if older_than_days is None else time.time() - older_than_days * _DAY_S
        whose = None if tenant is None else TenantId(_plain(tenant) or "")
        n_texts = await accounts.delete_records("texts", whose, before_s)
        n_requests = 0
        if what == "requests":
            n_requests = await accounts.delete_records("requests", whose, before_s)
        return RequestsDeleted(texts=n_texts, requests=n_requests)

    app.include_router(router)


def _no_request(request_id: str) -> ApiError:
    return ApiError(
        404,
        f"There is no request {request_id[:128]!r}. It may still run, or its record was deleted "
        "after records.keep_days.",
        code="request_not_found",
    )


def _plain(text: str | None) -> str | None:
    # PostgreSQL has no such character, so nothing is named by it.
    return None if text is None else text.replace("\x00", "")
