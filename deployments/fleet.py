"""What a router knows of its model's engines: who is there, what each runs, who has room.

It hears reports and forgets who went silent; whom to send a request to is `policy.routing`'s.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from serve_app.messages import (
    EngineId,
    EngineReport,
    EngineStatus,
    FrontEndOffer,
    TicketId,
)
from serve_app.names import TenantId
from serve_app.policy.routing import EngineView

logger = logging.getLogger(__name__)

_SILENT_ENGINE_S = 5.0
"""An engine without a heartbeat for so long gets nothing more; it sends one every 0.5 s."""
SLEPT_S = _SILENT_ENGINE_S / 2
"""A router that has not looked for so long cannot tell who was silent: what others said meanwhile
may still wait to be read."""
_FORGET_FAILED_S = 60.0
"""How long a failed engine's reason stays visible."""


@dataclass
class KnownEngine:
    """One engine as the router knows it."""

    report: EngineReport
    heard_s: float
    in_flight: dict[TicketId, TenantId] = field(default_factory=dict)
    """Requests handed to it and not ended, and whose they are."""
    by_tenant: Counter[TenantId] = field(default_factory=Counter)
    """The same, counted; those with none are left out."""
    is_reachable: bool = True
    on_probation: TicketId | None = None
    """A suspect of killing engines that has not got a token here yet: nobody else may come."""

    def hand(self, ticket: TicketId, tenant: TenantId) -> None:
        """Counts a request as handed to it. Known ones are left as they are."""
        if ticket not in self.in_flight:
            self.in_flight[ticket] = tenant
            self.by_tenant[tenant] += 1

    def take_back(self, ticket: TicketId) -> None:
        """Counts a request no more. Unknown ones are left in peace."""
        self.acquit(ticket)
        tenant = self.in_flight.pop(ticket, None)
        if tenant is not None:
            self.by_tenant[tenant] -= 1
            if not self.by_tenant[tenant]:
                del self.by_tenant[tenant]

    def acquit(self, ticket: TicketId) -> bool:
        """Ends a request's probation; says whether it was on one."""
        was_suspect = self.on_probation == ticket
        if was_suspect:
            self.on_probation = None
        return was_suspect


class Fleet:
    """The engines of one model.

    Args:
        limit: Returns how many requests the settings allow an engine to be handed; None leaves it
            to the engine.
    """

    def __init__(self, limit: Callable[[], int | None]) -> None:
        self._limit = limit
        self._engines: dict[EngineId, KnownEngine] = {}
        self._front_ends: dict[str, bytes] = {}

    def __iter__(self) -> Iterator[KnownEngine]:
        return iter(self._engines.values())

    def get(self, engine_id: EngineId) -> KnownEngine | None:
        """Returns an engine, if it is known."""
        return self._engines.get(engine_id)

    # --- what they run -----------------------------------------------------------------------

    def hand(self, engine_id: EngineId, ticket: TicketId, tenant: TenantId) -> None:
        """Counts a request as handed to an engine, if that is known."""
        engine = self._engines.get(engine_id)
        if engine is not None:
            engine.hand(ticket, tenant)

    def take_back(self, engine_id: EngineId | None, ticket: TicketId) -> None:
        """Counts a request as no longer there. Unknown ones are left in peace."""
        engine = None if engine_id is None else self._engines.get(engine_id)
        if engine is not None:
            engine.take_back(ticket)

    # --- what engines say --------------------------------------------------------------------

    def take_report(
        self, report: EngineReport, running: Iterable[tuple[TicketId, TenantId]], now_s: float
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
            for ticket, tenant in running:
                engine.hand(ticket, tenant)
            is_news = True
        else:
            is_news = (report.state, report.detail) != (engine.report.state, engine.report.detail)
        engine.report = report
        engine.heard_s = now_s
        engine.is_reachable = True
        if is_news:
            logger.info("Engine %s: %s %s", report.engine_id, report.state, report.detail)
        return is_news

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
        return True

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
            keep_s = _FORGET_FAILED_S if engine.report.state == "failed" else _SILENT_ENGINE_S
            if silent_s > keep_s:
                self.drop(engine_id, f"nothing heard for {silent_s:.1f} s")
                yield engine

    # --- what others may see -----------------------------------------------------------------

    def view(self, engine: KnownEngine) -> EngineView:
        """Returns an engine as routing sees it."""
        return EngineView(
            engine.report.engine_id,
            is_ready=engine.report.state == "ready"
            and engine.is_reachable
            and engine.on_probation is None,
            in_flight=len(engine.in_flight),
            room=self._limit() or engine.report.max_running,
        )

    def views(self) -> Iterator[EngineView]:
        """Yields all engines as routing sees them."""
        return map(self.view, self)

    def statuses(self) -> list[EngineStatus]:
        """Returns those that can be reached, as gateways show them."""
        reports = [engine.report for engine in self if engine.is_reachable]
        return [EngineStatus(r.engine_id, r.state, r.detail, r.load) for r in reports]

    def config_id(self) -> str:
        """Returns which front end fits the newest engine; empty while there is none."""
        config_ids = [e.report.config_id for e in self if e.report.config_id]
        return config_ids[-1] if config_ids else ""
