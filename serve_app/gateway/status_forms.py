"""What goes on at this moment, as the admin API says it."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from serve_app import telemetry
from serve_app.config_section import Section
from serve_app.gateway.gateway import Gateway
from serve_app.messages import EngineStatus, FairnessStatus, ModelStatus, TenantStatus
from serve_app.names import TenantId
from serve_app.store.usage import UsageSum

_TENANTS_SHOWN = 100
_NOTHING = UsageSum({}, 0, 0, 0, 0, 0, 0, 0)
_NOT_KNOWN = "the store does not answer: what was used today is not known"


@dataclass(frozen=True)
class UsedToday:
    """What was used today (UTC)."""

    total: UsageSum
    by_tenant: Mapping[str, UsageSum]
    """Of the first tenants by name, where there are very many."""


class LogLevelForm(Section):
    """How much is to be logged."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None
    """Least severe level that is written; null is what the config file says."""


class LogLevelView(Section):
    """How much is logged."""

    object: Literal["logging"] = "logging"
    level: str


class EngineView(Section):
    """One engine."""

    id: str
    state: str
    detail: str
    running: int
    waiting: int
    """Requests that it holds and cannot run yet."""
    kv_usage: float
    """Share of KV-cache blocks in use, 0 to 1."""
    tokens_per_s: float
    """Output, over the last two seconds."""


class ModelView(Section):
    """One base model."""

    name: str
    state: str
    detail: str
    domain: str
    """Models of one domain share turns; `fairness` is of the domain."""
    waiting: int
    """Requests at the router."""
    running: int
    tokens_per_s: float
    engines: tuple[EngineView, ...]


class DomainView(Section):
    """How fair the router of one domain is, in tokens of cost and weight 1."""

    name: str
    gap: float
    """Greatest difference of service of two tenants that wait."""
    bound: float
    """What the gap cannot exceed."""
    tenants_waiting: int


class TenantView(Section):
    """One tenant: what it has waiting and running, and what it used today (UTC)."""

    tenant: str
    weight: float
    waiting: int
    running: int
    lag: float
    """How far it is behind the waiting tenant that has got most, in the domain where it is most."""
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float


class Totals(Section):
    """Sums over all."""

    waiting: int
    running: int
    tokens_per_s: float
    requests: int
    """Today (UTC), as the next two."""
    tokens: int
    cost_usd: float


class Status(Section):
    """The platform at this moment, as one gateway knows it: routers tell it once a second."""

    object: Literal["status"] = "status"
    version: str
    time_s: float
    """Seconds since 1970."""
    ready: bool
    store: str
    """`ok`, `loading` or `degraded`."""
    store_problem: str
    """Also says so where what was used today is not known, and 0 everywhere."""
    log_level: str
    totals: Totals
    models: tuple[ModelView, ...]
    domains: tuple[DomainView, ...]
    tenants: tuple[TenantView, ...]
    """Those with most waiting, running and spent, in this order; no more than 100."""


def make_status(gateway: Gateway, used: UsedToday | None) -> Status:
    """Returns what goes on.

    Args:
        gateway: Who is asked.
        used: What tenants used today; None where the store does not say.
    """
    problem = gateway.accounts.problem or ("" if used is not None else _NOT_KNOWN)
    used = used or UsedToday(_NOTHING, {})
    known = gateway.known_models()
    models = tuple(
        _view_model(name, domain, state, detail, status)
        for name, domain, state, detail, status in known
    )
    by_domain = {domain: status.fairness for _, domain, _, _, status in known}
    return Status(
        version=telemetry.version(),
        time_s=time.time(),
        ready=gateway.readiness()["ready"],
        store="degraded" if problem else gateway.accounts.state,
        store_problem=problem,
        log_level=telemetry.log_level(),
        totals=Totals(
            waiting=sum(model.waiting for model in models),
            running=sum(model.running for model in models),
            tokens_per_s=round(sum(model.tokens_per_s for model in models), 1),
            requests=used.total.requests,
            tokens=used.total.prompt_tokens + used.total.completion_tokens,
            cost_usd=used.total.cost_usd,
        ),
        models=models,
        domains=tuple(_view_domain(name, f) for name, f in sorted(by_domain.items())),
        tenants=_view_tenants(by_domain.values(), used.by_tenant),
    )


def _view_model(name: str, domain: str, state: str, detail: str, status: ModelStatus) -> ModelView:
    engines = tuple(_view_engine(engine) for engine in status.engines)
    return ModelView(
        name=name,
        state=state,
        detail=detail,
        domain=domain,
        waiting=status.waiting,
        running=sum(engine.running for engine in engines),
        tokens_per_s=round(sum(engine.tokens_per_s for engine in engines), 1),
        engines=engines,
    )


def _view_engine(engine: EngineStatus) -> EngineView:
    return EngineView(
        id=engine.engine_id,
        state=engine.state,
        detail=engine.detail,
        running=engine.load.running,
        waiting=engine.load.waiting,
        kv_usage=engine.load.kv_usage,
        tokens_per_s=engine.load.tokens_per_s,
    )


def _view_domain(name: str, fairness: FairnessStatus) -> DomainView:
    return DomainView(
        name=name,
        gap=round(fairness.gap, 1),
        bound=round(fairness.bound, 1),
        tenants_waiting=fairness.tenants_waiting,
    )


def _view_tenants(
    domains: Iterable[FairnessStatus], used: Mapping[str, UsageSum]
) -> tuple[TenantView, ...]:
    queued: dict[str, list[TenantStatus]] = {}
    for fairness in domains:
        for tenant in fairness.tenants:
            queued.setdefault(tenant.tenant, []).append(tenant)
    views = [
        _view_tenant(tenant, queued.get(tenant, []), used.get(tenant))
        for tenant in queued.keys() | used.keys()
    ]
    views.sort(key=lambda v: (-v.waiting, -v.running, -v.cost_usd, -v.requests, v.tenant))
    return tuple(views[:_TENANTS_SHOWN])


def _view_tenant(tenant: str, queued: list[TenantStatus], used: UsageSum | None) -> TenantView:
    spent = used or _NOTHING
    return TenantView(
        tenant=TenantId(tenant),
        weight=max((each.weight for each in queued), default=1.0),
        waiting=sum(each.waiting for each in queued),
        running=sum(each.running for each in queued),
        lag=round(max((each.lag for each in queued), default=0.0), 1),
        requests=spent.requests,
        failed=spent.failed,
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        cost_usd=spent.cost_usd,
    )
