"""What a router knows of its models' engines: who is there, what each runs, who has room.

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
from serve_app.names import ModelName, TenantId
from serve_app.policy.routing import EngineView

logger = logging.getLogger(__name__)

_SILENT_ENGINE_S = 5.0
"""An engine without a heartbeat for so long gets nothing more; it sends one every 0.5 s."""
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

    def hand(self, ticket: TicketId, tenant: TenantId) -> None:
        """Counts a request as handed to it. Known ones are left as they are."""
        if ticket not in self.in_flight:
            self.in_flight[ticket] = tenant
            self.by_tenant[tenant] += 1

    def take_back(self, ticket: TicketId) -> None:
        """Counts a request no more. Unknown ones are left in peace."""
        tenant = self.in_flight.pop(ticket, None)
        if tenant is not None:
            self.by_tenant[tenant] -= 1
            if not self.by_tenant[tenant]:
                del self.by_tenant[tenant]


class Fleet:
    """The engines of a router's models.

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

    def drop(self, engine_id: EngineId, reason: str) -> None:
        """Forgets an engine. Unknown ones are left in peace."""
        if self._engines.pop(engine_id, None) is not None:
            logger.info("Engine %s is gone: %s.", engine_id, reason)

    def drop_silent(self, now_s: float) -> None:
        """Forgets engines that have said nothing for long."""
        for engine_id, engine in list(self._engines.items()):
            silent_s = now_s - engine.heard_s
            keep_s = _FORGET_FAILED_S if engine.report.state == "failed" else _SILENT_ENGINE_S
            if silent_s > keep_s:
                self.drop(engine_id, f"nothing heard for {silent_s:.1f} s")

    # --- what others may see -----------------------------------------------------------------

    def view(self, engine: KnownEngine) -> EngineView:
        """Returns an engine as routing sees it."""
        return EngineView(
            engine.report.engine_id,
            is_ready=engine.report.state == "ready" and engine.is_reachable,
            in_flight=len(engine.in_flight),
            room=self._limit() or engine.report.max_running,
        )

    def views(self, model: ModelName | None = None) -> Iterator[EngineView]:
        """Yields the engines of a model as routing sees them, or all."""
        return (self.view(e) for e in self if model is None or e.report.model == model)

    def statuses(self, model: ModelName) -> list[EngineStatus]:
        """Returns a model's that can be reached, as gateways show them."""
        reports = [e.report for e in self if e.is_reachable and e.report.model == model]
        return [EngineStatus(r.engine_id, r.state, r.detail, r.load) for r in reports]

    def config_id(self, model: ModelName) -> str:
        """Returns which front end fits a model's newest engine; empty while there is none."""
        reports = [engine.report for engine in self if engine.report.model == model]
        config_ids = [report.config_id for report in reports if report.config_id]
        return config_ids[-1] if config_ids else ""
