"""Hands a router's waiting requests to engines, in turn, as long as one has room."""

import logging
from collections.abc import Callable

from deployments.fleet import Fleet
from deployments.placer import Placer, Wish
from deployments.router_metrics import RouterMetrics
from deployments.ticket import Ticket
from deployments.ticket_book import TicketBook
from serve_app.messages import Grant, Standing, TicketId
from serve_app.policy.fairness import Vtc
from serve_app.policy.queueing import Waiting
from serve_app.policy.suspicion import is_suspect
from serve_app.policy.turns import Admission, Fit

logger = logging.getLogger(__name__)


class Dispatcher:
    """Brings together whose turn it is and where there is room.

    Args:
        queue: Says whose turn it is.
        fleet: The engines.
        tickets: The requests.
        placer: Finds engines.
        send: Sends a gateway a grant.
        metrics: Counts grants.
        max_deaths: Returns after how many engines that died under it a request is a suspect.
        preempts: Whether a newcomer may go to a full engine where somebody yields.
    """

    def __init__(
        self,
        queue: Vtc,
        fleet: Fleet,
        tickets: TicketBook,
        placer: Placer,
        send: Callable[[bytes, Grant], None],
        metrics: RouterMetrics,
        max_deaths: Callable[[], int],
        *,
        preempts: bool,
    ) -> None:
        self._queue = queue
        self._fleet = fleet
        self._tickets = tickets
        self._placer = placer
        self._send = send
        self._metrics = metrics
        self._max_deaths = max_deaths
        self._preempts = preempts
        self.n_turns = 0
        """Requests handed out so far."""
        self._newcomer: TicketId | None = None
        """The request that has just come: it alone may go beyond an engine's room."""

    def dispatch(self, now_s: float) -> None:
        """Hands out what waits as long as an engine has room."""
        if any(engine.in_flight < engine.room for engine in self._fleet.views()):
            self._hand_out(now_s)

    def dispatch_newcomer(self, ticket: TicketId, now_s: float) -> None:
        """The same when a request has just come; has its adapter loaded if it has to wait."""
        known = self._tickets[ticket]
        self._placer.note_arrival(_wish(known))
        self._newcomer = ticket
        self._hand_out(now_s)
        self._newcomer = None
        if known.engine_id is None:
            self._placer.prepare_early(_wish(known))

    def _hand_out(self, now_s: float) -> None:
        while (admission := self._admit(now_s)) is not None:
            logger.debug("%s runs: %s.", admission.request.ticket, admission.reason)
            self._grant(admission, now_s)

    def _admit(self, now_s: float) -> Admission | None:
        self._placer.look_again()
        return self._queue.admit(self._place, now_s)

    def _place(self, request: Waiting) -> Fit | None:
        wish = _wish(self._tickets[request.ticket])
        fit = self._placer.place(wish)
        if fit is None and request.ticket == self._newcomer and self._preempts:
            return self._placer.place_beyond(wish, self._tickets.n_waiting(wish.tenant))
        return fit

    def _grant(self, admission: Admission, now_s: float) -> None:
        ticket, engine = admission.request.ticket, self._fleet.get(admission.fit.engine_id)
        assert engine is not None, "only known engines are placed on"
        endpoint = engine.report.endpoint
        assert endpoint is not None
        self.n_turns += 1
        known = self._tickets.begin(ticket, engine.report.engine_id, now_s)
        waited_s, is_express = now_s - known.since_s, admission.fit.is_express
        self._metrics.grant(known.tenant, known.model, waited_s, express=is_express)
        is_last_try = is_suspect(known.strikes, self._max_deaths())
        self._fleet.begin_probation(admission.fit.engine_id, ticket, is_suspect=is_last_try)
        standing = Standing(
            known.tenant,
            admission.tier,
            admission.counter,
            admission.charged,
            is_express,
        )
        load_s = self._placer.load_s(known.adapter, known.since_s, now_s)
        queue_s = now_s - known.since_s - load_s
        engine_id = engine.report.engine_id
        grant = Grant(ticket, engine_id, endpoint, standing, queue_s, load_s)
        self._send(known.gateway, grant)


def _wish(known: Ticket) -> Wish:
    return Wish(
        known.tenant,
        known.model,
        known.adapter,
        known.marks,
        has_run=known.has_run,
        dialect=known.dialect,
    )
