"""Records of requests as the admin API gives them."""

from typing import Literal

from serve_app.config_section import Section
from serve_app.store.tables import RequestTextRow, UsageRow


class RequestView(Section):
    """One request. Times to the first token in milliseconds, as its answer's headers had them."""

    id: str
    """Ours; no two requests have the same."""
    request_id: str
    """The answer's `x-request-id`, which may be the client's own."""
    tenant: str
    key: str
    """The key's id; empty where keys are off."""
    model: str
    adapter: str
    """Empty for the base model itself."""
    outcome: str
    """`finished`, `failed`, `cancelled` by its client, or `refused` before an engine had it."""
    status: int | None
    """HTTP; 0 where the answer never began."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: float
    engine: str | None
    """The one that had it last."""
    migrations: int | None
    started_s: float
    """Seconds since 1970."""
    ended_s: float
    total_ms: float | None
    ttft_ms: float | None
    gateway_ms: float | None
    queue_ms: float | None
    router_ms: float | None
    adapter_load_ms: float | None
    engine_ttft_ms: float | None
    ledger_ms: float | None
    """Part of `gateway_ms`."""
    has_texts: bool
    """Whether prompt and answer are kept."""


class RequestList(Section):
    """Requests, the latest first."""

    object: Literal["list"] = "list"
    data: tuple[RequestView, ...]
    has_more: bool
    next: str | None
    """For `before`, where there are more."""


class RequestDetail(RequestView):
    """One request with its texts, where those are kept."""

    path: str | None = None
    request: str | None = None
    """The body, as it came."""
    answer: str | None = None
    """The body, as it went; of a stream, its events."""
    is_whole: bool | None = None
    """Whether neither was cut off."""


class RequestsDeleted(Section):
    """How much was deleted."""

    object: Literal["requests.deleted"] = "requests.deleted"
    texts: int
    requests: int


def view_request(row: UsageRow, *, has_texts: bool) -> RequestView:
    """Returns a row as the admin API gives it."""
    return RequestView(
        id=row.request_id,
        request_id=row.client_request_id,
        tenant=row.tenant_id,
        key=row.key_id,
        model=row.model,
        adapter=row.adapter,
        outcome=row.outcome,
        status=row.status,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        cost_usd=row.cost_nano_usd / 1e9,
        engine=row.engine,
        migrations=row.migrations,
        started_s=row.started_s,
        ended_s=row.ended_s,
        total_ms=_ms(row.total_s),
        ttft_ms=_ms(row.ttft_s),
        gateway_ms=_ms(row.gateway_s),
        queue_ms=_ms(row.queue_s),
        router_ms=_ms(row.router_s),
        adapter_load_ms=_ms(row.adapter_load_s),
        engine_ttft_ms=_ms(row.engine_ttft_s),
        ledger_ms=_ms(row.ledger_s),
        has_texts=has_texts,
    )


def view_detail(row: UsageRow, texts: RequestTextRow | None) -> RequestDetail:
    """Returns a row with its texts."""
    view = view_request(row, has_texts=texts is not None).model_dump()
    if texts is None:
        return RequestDetail(**view)
    return RequestDetail(
        **view,
        path=texts.path,
        request=texts.request,
        answer=texts.answer,
        is_whole=texts.is_whole,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
