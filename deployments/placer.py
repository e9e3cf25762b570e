"""Finds engines for a router's requests, and has their adapters loaded in time.

Asks the policies: `routing` for the base model, `adapters` for those with an adapter, `express` for
who may go to a full engine.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from deployments.absences import Absences
from deployments.fleet import Fleet
from deployments.known_engine import KnownEngine
from serve_app.adapter_counts import AdapterArrivals
from serve_app.messages import AdapterRef, EngineId, EngineMail, Prepare
from serve_app.names import ModelName, TenantId
from serve_app.policy.adapters import AdapterEngine, Nearness, choose_place, choose_preparation
from serve_app.policy.express import Holder, may_go_beyond
from serve_app.policy.fairness_options import Share
from serve_app.policy.routing import choose_engine, rank_beyond
from serve_app.policy.turns import Fit


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request needs."""

    tenant: TenantId
    model: ModelName
    adapter: AdapterRef | None = None
    marks: Sequence[int] = ()
    """Of its prompt (`policy.prefixes`)."""
    has_run: bool = False
    """Whether it lost its engine: what is loaded for it again is not its tenant's to pay."""
    dialect: str = ""
    """Of its tokens; empty is any."""


class Placer:
    """Says where requests run.

    Args:
        fleet: The engines.
        count: Returns counters of tenants, in units.
        share_of: Returns what a tenant is entitled to.
        send: Sends an engine a message.
        now: The monotonic clock.
    """

    def __init__(
        self,
        fleet: Fleet,
        count: Callable[[Iterable[TenantId]], Mapping[TenantId, int]],
        share_of: Callable[[TenantId], Share],
        send: Callable[[EngineId, EngineMail], None],
        now: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._count = count
        self._share_of = share_of
        self._send = send
        self._now = now
        self._absences = Absences()
        self._arrivals: defaultdict[ModelName, Counter[str]] = defaultdict(Counter)
        self._views: dict[tuple[ModelName, TenantId, str], list[AdapterEngine]] = {}
        """What engines look like, until somebody is handed over or something is asked for."""
        self._ahead: set[int] = set()
        """Adapters of requests that were looked at since, and found no place."""

    def look_again(self) -> None:
        """Engines may have changed; called before each search for who runs next."""
        self._views.clear()
        self._ahead.clear()

    def note_arrival(self, wish: Wish) -> None:
        """Counts how near a request's adapter is as it comes."""
        if wish.adapter is not None:
            engines = [e for e in self._fleet if e.report.model == wish.model]
            self._arrivals[wish.model][_nearness(engines, wish.adapter.id)] += 1

    def arrivals(self, model: ModelName) -> AdapterArrivals:
        """Returns those of a model so far."""
        return AdapterArrivals(**self._arrivals[model])

    def place(self, wish: Wish) -> Fit | None:
        """Returns an engine with room; None when the request has to wait."""
        if wish.adapter is not None:
            return self._place_with(wish, wish.adapter)
        engine = choose_engine(self._fleet.views(wish.model, wish.marks, wish.dialect))
        return None if engine is None else Fit(engine.engine_id, engine.cached_tokens)

    def place_beyond(self, wish: Wish, n_waiting: int) -> Fit | None:
        """Returns a full engine on which somebody yields to the request; None if nobody does.

        Args:
            wish: The request.
            n_waiting: Requests of its tenant that wait, itself included.
        """
        for engine_id in rank_beyond(self._fleet.views(wish.model, dialect=wish.dialect)):
            engine = self._known(engine_id)
            if wish.adapter is not None and wish.adapter.id not in engine.by_adapter:
                continue  # It would want a slot, too.
            if self._may_go_beyond(wish.tenant, n_waiting, engine):
                return Fit(engine_id, is_express=True)
        return None

    def load_s(self, adapter: AdapterRef | None, since_s: float, now_s: float) -> float:
        """Returns how long of the time since then a request had its turn and no adapter."""
        return 0.0 if adapter is None else self._absences.overlap_s(adapter.id, since_s, now_s)

    def prepare_early(self, wish: Wish) -> None:
        """Has an adapter loaded while its request waits for its turn."""
        if wish.adapter is not None:
            self._prepare(self._view(wish), wish, wish.adapter)

    def _view(self, wish: Wish) -> list[AdapterEngine]:
        """Without prompts: most requests that are looked at have to wait, whatever their prompt."""
        key = wish.model, wish.tenant, wish.dialect
        if key not in self._views:
            self._views[key] = self._fleet.adapter_views(
                wish.model, wish.tenant, dialect=wish.dialect
            )
        return self._views[key]

    def _place_with(self, wish: Wish, adapter: AdapterRef) -> Fit | None:
        """Where no engine has the adapter, one is asked to load it, and the request waits."""
        views = self._view(wish)
        if any(view.is_ready and view.has(adapter.id) for view in views):
            self._absences.end(adapter.id, self._now())
        else:
            self._absences.begin(adapter.id, self._now())
        place = choose_place(views, adapter.id)
        if place is not None and wish.marks:
            views = self._fleet.adapter_views(wish.model, wish.tenant, wish.marks, wish.dialect)
            place = choose_place(views, adapter.id)
        engine = self._prepare(views, wish, adapter)
        if place is not None:
            is_loaded = place.nearness is Nearness.RUNNING
            return Fit(place.engine_id, place.cached_tokens, is_loaded=is_loaded)
        if engine is not None and adapter.id in engine.report.adapters.failures:
            return self._place_failed(views, engine.report.engine_id, adapter)
        self._claim_slot(views, adapter.id)
        return None

    def _claim_slot(self, views: Sequence[AdapterEngine], adapter_id: int) -> None:
        """Where only a slot is missing, a busy adapter gets no more requests until one is free."""
        for view in views:
            if view.lacks_slot(adapter_id):
                known, now_s = self._known(view.engine_id), self._now()
                running = known.by_adapter
                if known.claims.claim(adapter_id, running, self._ahead, view.slots, now_s):
                    self._views.clear()
        self._ahead.add(adapter_id)

    def _place_failed(
        self, views: Sequence[AdapterEngine], engine_id: EngineId, adapter: AdapterRef
    ) -> Fit | None:
        """What an engine could not load it is given all the same: it tells the client why."""
        (view,) = (view for view in views if view.engine_id == engine_id)
        if not view.may_take(adapter.id):
            return None
        self._absences.end(adapter.id, self._now())
        return Fit(engine_id, is_loaded=False)

    def _prepare(
        self, views: Sequence[AdapterEngine], wish: Wish, adapter: AdapterRef
    ) -> KnownEngine | None:
        """Has an adapter loaded where it should be; returns where, if anywhere."""
        engine_id = choose_preparation(views, adapter.id)
        if engine_id is None:
            return None
        engine = self._known(engine_id)
        if adapter.id not in engine.report.adapters.failures:
            engine.ask(adapter.id, wish.tenant, None if wish.has_run else wish.tenant, self._now())
            self._send(engine_id, Prepare(adapter, wish.tenant))
            self._views.clear()
        return engine

    def _may_go_beyond(self, tenant: TenantId, n_waiting: int, engine: KnownEngine) -> bool:
        counters = self._count([tenant, *engine.by_tenant])
        others = (
            self._holder(other, n_places, counters[other])
            for other, n_places in engine.by_tenant.items()
            if other != tenant
        )
        newcomer = self._holder(tenant, engine.by_tenant[tenant], counters[tenant])
        return may_go_beyond(newcomer, n_waiting, others)

    def _holder(self, tenant: TenantId, n_places: int, counter: int) -> Holder:
        share = self._share_of(tenant)
        return Holder(n_places, share.weight, share.tier, counter)

    def _known(self, engine_id: EngineId) -> KnownEngine:
        engine = self._fleet.get(engine_id)
        assert engine is not None, "policies choose among engines that are known"
        return engine


def _nearness(engines: Iterable[KnownEngine], adapter_id: int) -> str:
    """As `AdapterArrivals` calls it."""
    ready = [engine for engine in engines if engine.report.state == "ready"]
    if any(adapter_id in engine.by_adapter for engine in ready):
        return "running"
    if any(adapter_id in engine.in_memory for engine in ready):
        return "in_memory"
    if any(adapter_id in engine.asked for engine in ready):
        return "coming"
    return "on_disk" if any(adapter_id in engine.on_disk for engine in ready) else "away"
