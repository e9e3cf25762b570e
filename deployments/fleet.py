"""What a router knows of its models' engines: who is there, what each runs, who has room.

It hears reports and forgets who went silent; whom to send a request to is `policy.routing`'s.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from deployments.known_engine import SILENT_ENGINE_S, Handed, KnownEngine
from serve_app.messages import (
    AdapterReport,
    EngineId,
    EngineReport,
    EngineStatus,
    FrontEndOffer,
    TicketId,
)
from serve_app.names import ModelName, TenantId
from serve_app.policy.adapters import AdapterEngine
from serve_app.policy.breaker import find_skipped
from serve_app.policy.routing import EngineView

logger = logging.getLogger(__name__)

SLEPT_S = SILENT_ENGINE_S / 2
"""A router that has not looked for so long cannot tell who was silent: what others said meanwhile
may still wait to be read."""


def _have_moved(now: AdapterReport, before: AdapterReport) -> bool:
    return (now.in_memory, now.failures) != (before.in_memory, before.failures)


class Fleet:
    """The engines of a router's models.

    Args:
        limit: Returns how many requests the settings allow an engine to be handed; None leaves it
            to the engine.
        now: The monotonic clock.
    """

    def __init__(self, limit: Callable[[], int | None], now: Callable[[], float]) -> None:
        self._limit = limit
        self._now = now
        self._engines: dict[EngineId, KnownEngine] = {}
        self._front_ends: dict[str, bytes] = {}
        self.served: frozenset[ModelName] | None = None
        """Models that the settings have; None is not known."""

    def __iter__(self) -> Iterator[KnownEngine]:
        return iter(self._engines.values())

    def get(self, engine_id: EngineId) -> KnownEngine | None:
        """Returns an engine, if it is known."""
        return self._engines.get(engine_id)

    # --- what they run -----------------------------------------------------------------------

    def hand(self, engine_id: EngineId, ticket: TicketId, handed: Handed) -> None:
        """Counts a request as handed to an engine, if that is known."""
        engine = self._engines.get(engine_id)
        if engine is not None:
            engine.hand(ticket, handed)

    def take_back(self, engine_id: EngineId | None, ticket: TicketId) -> None:
        """Counts a request as no longer there. Unknown ones are left in peace."""
        engine = None if engine_id is None else self._engines.get(engine_id)
        if engine is not None:
            engine.take_back(ticket)

    # --- what engines say --------------------------------------------------------------------

    def take_report(
        self, report: EngineReport, running: Iterable[tuple[TicketId, Handed]], now_s: float
    ) -> bool:
        """Takes a report; says whether anything is new but its load.

        Args:
            report: The engine's.
            running: What is known to run there, read for an engine that is new: a new router
                learns of running requests before it learns of their engines.
            now_s: The monotonic clock.
        """
        engine = self._engines.get(report.engine_id)
        if engine is None:
            engine = self._engines[report.engine_id] = KnownEngine(report, now_s)
            engine.prefixes.capacity = report.prefix_tokens
            for ticket, handed in running:
                engine.hand(ticket, handed)
            has_changed = True
        else:
            before = engine.report
            has_changed = (report.state, report.detail) != (before.state, before.detail)
        has_moved = _have_moved(report.adapters, engine.report.adapters)
        engine.take_report(report, now_s)
        if has_changed:
            logger.info("Engine %s: %s %s", report.engine_id, report.state, report.detail)
            # Why others could not start is no news once one starts, or says why it cannot.
            if engine.is_ready or engine.is_unstarted:
                self.outdate_reasons(report.model, now_s)
                engine.is_outdated = False
        return has_changed or has_moved

    def outdate_reasons(self, model: ModelName, now_s: float) -> None:
        """Keeps why engines of a model could not start only as long as they say it themselves."""
        for engine_id, engine in list(self._engines.items()):
            if engine.report.model == model and engine.is_unstarted:
                engine.is_outdated = True
                if now_s - engine.heard_s > engine.keep_s:
                    self.drop(engine_id, "why it could not start is old")

    def take_offer(self, offer: FrontEndOffer) -> None:
        """Keeps a front end; forgets those that no engine uses any more."""
        used = {engine.report.config_id for engine in self}
        self._front_ends = {
            config_id: payload
            for config_id, payload in self._front_ends.items()
            if config_id in used
        } | {offer.config_id: offer.payload}

    def front_end(self, config_id: str) -> bytes | None:
        """Returns what gateways need to parse requests for these engines, if it is known."""
        return self._front_ends.get(config_id)

    # --- who is lost -------------------------------------------------------------------------

    def mark_unreachable(self, engine_id: EngineId) -> bool:
        """Takes an engine for lost until its next report; says whether that is new.

        If a report comes, only the connection had broken.
        """
        engine = self._engines.get(engine_id)
        if engine is None or not engine.is_reachable:
            return False
        logger.warning("Engine %s cannot be reached by a gateway.", engine_id)
        engine.is_reachable = False
        self.note_failure(engine_id)
        return True

    def note_failure(self, engine_id: EngineId) -> None:
        """A request failed at an engine, or could not get there."""
        engine = self._engines.get(engine_id)
        if engine is None:
            return
        was_open, now_s = engine.breaker.is_open(self._now()), self._now()
        engine.breaker = engine.breaker.with_failure(now_s)
        if engine.breaker.is_open(now_s) and not was_open:
            logger.error("Engine %s keeps failing and is skipped for a while.", engine_id)

    def note_success(self, engine_id: EngineId, tickets: Iterable[TicketId]) -> bool:
        """Requests have got tokens; says whether that ends an engine's probation."""
        engine = self._engines.get(engine_id)
        if engine is None or not any(map(engine.acquit, tickets)):
            return False
        engine.breaker = engine.breaker.with_success()
        return True

    def begin_probation(self, engine_id: EngineId, ticket: TicketId, *, is_suspect: bool) -> None:
        """Keeps others from an engine while its new request or the engine itself is on trial."""
        engine = self._engines[engine_id]
        if is_suspect or engine.breaker.is_half_open(self._now()):
            engine.on_probation = ticket

    def drop(self, engine_id: EngineId, reason: str) -> KnownEngine | None:
        """Forgets an engine; returns what was known of it."""
        engine = self._engines.pop(engine_id, None)
        if engine is not None:
            logger.info("Engine %s is gone: %s.", engine_id, reason)
        return engine

    def drop_silent(self, now_s: float) -> Iterator[KnownEngine]:
        """Forgets engines that have said nothing for long, and yields what was known of them."""
        for engine_id, engine in list(self._engines.items()):
            silent_s = now_s - engine.heard_s
            if silent_s > engine.keep_s:
                self.drop(engine_id, f"nothing heard for {silent_s:.1f} s")
                yield engine

    # --- what others may see -----------------------------------------------------------------

    def view(self, engine: KnownEngine, marks: Sequence[int] = ()) -> EngineView:
        """Returns an engine as routing sees it, for a prompt with these marks."""
        takes = engine.report.state == "ready" or self._is_still_needed(engine)
        return EngineView(
            engine.report.engine_id,
            is_ready=takes
            and engine.is_reachable
            and engine.on_probation is None
            and not self._is_skipped(engine),
            in_flight=len(engine.in_flight),
            room=self._limit() or engine.report.max_running,
            cached_tokens=engine.prefixes.match(marks),
        )

    def _is_still_needed(self, engine: KnownEngine) -> bool:
        """Whether an engine that drains has to take what none will that comes after it."""
        if engine.report.state != "draining":
            return False
        if self.is_gone(engine.report.model):
            return True
        ready = {e.dialect for e in self if e.is_ready and e.report.model == engine.report.model}
        return bool(ready and engine.dialect) and engine.dialect not in ready

    def is_gone(self, model: ModelName) -> bool:
        """Whether a model is served no more."""
        return bool(model) and self.served is not None and model not in self.served

    def _is_skipped(self, engine: KnownEngine) -> bool:
        """Whether it keeps failing, and another one can read what it reads."""
        if engine.breaker.until_s is None:
            return False
        ready = {
            peer.report.engine_id: peer.breaker
            for peer in self
            if peer.is_ready and peer.serves(engine.report.model, engine.dialect)
        }
        return engine.report.engine_id in find_skipped(ready, self._now())

    def has_left_behind(self, model: ModelName, dialect: str) -> bool:
        """Whether a model's engines are others now, none of which understands a dialect."""
        engines = [e for e in self if e.report.model == model]
        if any(
            e.report.state in ("ready", "draining") and e.serves(model, dialect) for e in engines
        ):
            return False
        return self.is_gone(model) or any(e.is_ready for e in engines)

    def views(
        self, model: ModelName | None = None, marks: Sequence[int] = (), dialect: str = ""
    ) -> Iterator[EngineView]:
        """Yields engines as routing sees them.

        Args:
            model: Of this model; None is all.
            marks: Of the prompt that is to be placed.
            dialect: Only of engines that understand it; empty is any.
        """
        return (self.view(e, marks) for e in self if model is None or e.serves(model, dialect))

    def adapter_views(
        self, model: ModelName, tenant: TenantId, marks: Sequence[int] = (), dialect: str = ""
    ) -> list[AdapterEngine]:
        """Returns the engines of a model as they are seen when a tenant's request is placed."""
        return [self._view_adapters(e, tenant, marks) for e in self if e.serves(model, dialect)]

    def _view_adapters(
        self, engine: KnownEngine, tenant: TenantId, marks: Sequence[int]
    ) -> AdapterEngine:
        view = self.view(engine, marks)
        return AdapterEngine(
            view.engine_id,
            view.is_ready,
            view.in_flight,
            view.room,
            engine.report.adapters.slots,
            engine.by_adapter.keys(),
            engine.in_memory,
            engine.asked.keys(),
            engine.on_disk,
            view.cached_tokens,
            engine.may_load_ahead(tenant, self._now()),
            engine.claims.closed(self._now()),
        )

    def has_adapter(self, model: ModelName, adapter_id: int) -> bool:
        """Whether some engine of a model has an adapter in memory."""
        return any(adapter_id in e.in_memory for e in self if e.report.model == model)

    def statuses(self, model: ModelName) -> list[EngineStatus]:
        """Returns a model's that can be reached, as gateways show them."""
        reports = [e.report for e in self if e.is_reachable and e.report.model == model]
        return [self._status_of(report) for report in reports]

    def _status_of(self, report: EngineReport) -> EngineStatus:
        return EngineStatus(
            report.engine_id,
            report.state,
            self._detail_of(report),
            report.load,
            report.adapters.tally,
            len(report.adapters.in_memory),
            report.max_running,
        )

    def _detail_of(self, report: EngineReport) -> str:
        if not self._is_skipped(self._engines[report.engine_id]):
            return report.detail
        return "it keeps failing and gets no requests for a while"

    def config_id(self, model: ModelName) -> str:
        """Returns which front end fits a model's newest engine; empty while there is none.

        One that serves goes before those that do not any more.
        """
        engines = [e for e in self if e.report.model == model and e.report.config_id]
        serving = [engine for engine in engines if engine.report.state == "ready"] or engines
        return serving[-1].report.config_id if serving else ""
