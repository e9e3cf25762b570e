"""One actor a base model: who waits, which engines there are, who goes where.

It decides nothing itself: `serve_app.policy` says who is next and on which engine. Its state can
be lost: gateways repeat what waits and what runs (`Resume`) to a new router and engines report
themselves, so that clients of a router that died only wait.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from serve_app.config import FairnessSettings, Settings
from serve_app.messages import (
    Alive,
    Endpoint,
    EngineGone,
    EngineId,
    EngineReport,
    EngineStatus,
    EngineUnreachable,
    Enqueue,
    FrontEndOffer,
    FrontEndPayload,
    FrontEndWanted,
    GatewayMail,
    Grant,
    Introduce,
    Leave,
    ModelStatus,
    Progress,
    Refuse,
    Resume,
    RouterMail,
    TicketId,
)
from serve_app.names import TenantId
from serve_app.policy.admission import QueueView, admit
from serve_app.policy.fairness import Vtc, VtcSettings
from serve_app.policy.fairness_baselines import ByRequest, OneLine
from serve_app.policy.fairness_options import Cost, MovingAverage, NoPrediction, Share
from serve_app.policy.queueing import Waiting
from serve_app.policy.routing import EngineView, choose_engine
from serve_app.policy.turns import Fit
from serve_app.wire import Mailbox

logger = logging.getLogger(__name__)

_STATUS_EVERY_S = 1.0
_SILENT_ENGINE_S = 5.0
"""An engine without a heartbeat for so long gets nothing more; it sends one every 0.5 s."""
_SILENT_GATEWAY_S = 10.0
_FORGET_FAILED_S = 60.0
"""How long a failed engine's reason stays visible."""


@dataclass
class _Engine:
    report: EngineReport
    heard_s: float
    in_flight: set[TicketId] = field(default_factory=set)
    is_reachable: bool = True


@dataclass
class _Gateway:
    heard_s: float
    tickets: set[TicketId] = field(default_factory=set)


@dataclass
class _Ticket:
    gateway: bytes
    tenant: TenantId
    engine_id: EngineId | None
    """None while it waits."""
    since_s: float
    completion_tokens: int = 0
    """Those charged so far."""


def make_turn_order(fairness: FairnessSettings) -> Vtc:
    """Returns the queue that the settings ask for, empty."""
    if fairness.policy == "fcfs":
        return OneLine()
    if fairness.policy == "round_robin":
        return ByRequest()
    cost = Cost(
        prompt=fairness.prompt_cost, cached=fairness.cached_cost, output=fairness.output_cost
    )
    predictor = MovingAverage() if fairness.predicts_lengths else NoPrediction()
    return Vtc(VtcSettings(cost=cost, lifts=fairness.policy == "vtc"), predictor)


def _waiting(mail: Enqueue) -> Waiting:
    return Waiting(mail.ticket, mail.tenant, mail.prompt_tokens, mail.max_tokens)


class Router:
    """Holds the waiting requests of one base model and hands each to an engine with room.

    Args:
        model_name: For log lines.
        settings: Bounds on waiting and running requests, and what is fair.
        listener: Where gateways and engines connect to.
        now: The monotonic clock.
    """

    def __init__(
        self,
        model_name: str,
        settings: Settings,
        listener: Mailbox,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model_name = model_name
        self._limits = settings.limits
        self._listener = listener
        self._now = now
        self._queue = make_turn_order(settings.fairness)
        self._engines: dict[EngineId, _Engine] = {}
        self._gateways: dict[bytes, _Gateway] = {}
        self._tickets: dict[TicketId, _Ticket] = {}
        self._shares: dict[TenantId, Share] = {}
        self._n_waiting: Counter[TenantId] = Counter()
        """By tenant; those with none are left out."""
        self._front_ends: dict[str, bytes] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(RouterMail)
        self._now_s = now()

    @property
    def endpoint(self) -> Endpoint:
        """Where gateways and engines connect to."""
        return self._listener.endpoint

    def configure(self, settings: Settings) -> None:
        """Takes new limits; what already waits or runs stays.

        Costs and prediction are fixed when a router starts: a counter means nothing in other units.
        """
        self._limits = settings.limits
        self._dispatch()

    async def run(self) -> None:
        """Receives and decides until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive_mail())
            tasks.create_task(self._look_around_regularly())

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()

    async def _receive_mail(self) -> None:
        while True:
            sender, frames = await self._listener.receive()
            try:
                mail = self._decoder.decode(frames[0])
            except msgspec.DecodeError as error:
                logger.error(
                    "A message for the router of %s is malformed: %s", self._model_name, error
                )
                continue
            self.handle(sender, mail)

    async def _look_around_regularly(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_EVERY_S)
            self.look_around()

    def look_around(self) -> None:
        """Forgets who went silent and tells gateways how things stand; called regularly."""
        self._now_s = self._now()
        self._drop_silent()
        self._dispatch()
        self._refuse_overdue()
        self._publish_status()

    def handle(self, sender: bytes, mail: RouterMail) -> None:
        """Takes one message; called for each, in order."""
        self._now_s = self._now()
        match mail:
            case EngineReport():
                self._take_report(mail)
                return
            case FrontEndOffer():
                self._front_ends = {
                    config_id: payload
                    for config_id, payload in self._front_ends.items()
                    if any(e.report.config_id == config_id for e in self._engines.values())
                } | {mail.config_id: mail.payload}
                return
            case Progress():
                self._charge(mail)
                return
            case EngineGone():
                self._drop_engine(mail.engine_id, "it left")
                self._publish_status()
                return
        if sender not in self._gateways and not isinstance(mail, Resume):
            # It was silent for so long that it was forgotten, tickets included.
            self._send(sender, Introduce())
            return
        gateway = self._gateways.setdefault(sender, _Gateway(self._now_s))
        gateway.heard_s = self._now_s
        match mail:
            case Enqueue():
                self._enqueue(sender, mail)
            case Leave():
                self._leave(mail)
                self._dispatch()
            case Resume():
                self._resume(sender, gateway, mail)
            case EngineUnreachable():
                self._mark_unreachable(mail.engine_id)
            case FrontEndWanted():
                self._send_front_end(sender, mail.config_id)
            case Alive():
                pass

    # --- tickets ----------------------------------------------------------------------------

    def _enqueue(self, sender: bytes, mail: Enqueue) -> None:
        if mail.ticket in self._tickets:
            return
        self._add_ticket(sender, mail, None)
        self._note_share(mail)
        self._queue.arrive(_waiting(mail), self._now_s)
        self._dispatch()
        if self._tickets[mail.ticket].engine_id is not None:
            return
        refusal = admit(self._view_queue(mail.tenant), self._limits)
        if refusal is not None:
            self._leave(Leave(mail.ticket))
            self._send(
                sender, Refuse(mail.ticket, "crowded", refusal.reason, refusal.retry_after_s)
            )

    def _note_share(self, mail: Enqueue) -> None:
        """Gateways know tenants; a change reaches the queue with the tenant's next request."""
        # The queue serves its tier 0 first, and tenants' higher tiers go first.
        share = Share(mail.weight, -mail.tier)
        if self._shares.get(mail.tenant) != share:
            self._shares[mail.tenant] = share
            self._queue.set_shares(self._shares)

    def _view_queue(self, tenant: TenantId) -> QueueView:
        """The queue without this tenant's newest request, which asks to join."""
        own = self._n_waiting[tenant]
        others = len(self._n_waiting) - 1
        return QueueView(self._n_waiting.total() - 1, own - 1, others)

    def _add_ticket(self, gateway: bytes, enqueue: Enqueue, engine_id: EngineId | None) -> None:
        self._tickets[enqueue.ticket] = _Ticket(gateway, enqueue.tenant, engine_id, self._now_s)
        self._gateways[gateway].tickets.add(enqueue.ticket)
        if engine_id is None:
            self._n_waiting[enqueue.tenant] += 1

    def _stop_waiting(self, tenant: TenantId) -> None:
        self._n_waiting[tenant] -= 1
        if not self._n_waiting[tenant]:
            del self._n_waiting[tenant]

    def _leave(self, mail: Leave) -> None:
        """Ends a ticket and settles what it owes on the gateway's count."""
        known = self._tickets.pop(mail.ticket, None)
        if known is None:
            return
        self._gateways[known.gateway].tickets.discard(mail.ticket)
        if known.engine_id is None:
            self._stop_waiting(known.tenant)
        elif known.engine_id in self._engines:
            self._engines[known.engine_id].in_flight.discard(mail.ticket)
        # The engine's last progress may still be on its way; it will find no ticket.
        self._queue.charge(mail.ticket, max(0, mail.completion_tokens - known.completion_tokens))
        if mail.is_finished:
            self._queue.finish(mail.ticket, mail.cached_tokens)
        else:
            is_computed = mail.completion_tokens > 0 or mail.cached_tokens is not None
            self._queue.abort(mail.ticket, is_computed=is_computed)

    def _charge(self, progress: Progress) -> None:
        for ticket, n_tokens in progress.tokens.items():
            known = self._tickets.get(ticket)
            if known is not None:
                known.completion_tokens += n_tokens
                self._queue.charge(ticket, n_tokens)

    def _resume(self, sender: bytes, gateway: _Gateway, mail: Resume) -> None:
        for ticket in list(gateway.tickets):
            self._leave(Leave(ticket))
        for running in mail.running:
            ticket = running.enqueue.ticket
            self._add_ticket(sender, running.enqueue, running.engine_id)
            self._tickets[ticket].completion_tokens = running.completion_tokens
            self._note_share(running.enqueue)
            self._queue.adopt(_waiting(running.enqueue), running.completion_tokens, self._now_s)
            if running.engine_id in self._engines:
                self._engines[running.engine_id].in_flight.add(ticket)
        for entry in mail.waiting:
            self._enqueue(sender, entry)
        self._send(sender, self._status())

    def _refuse_overdue(self) -> None:
        """Nobody waits for ever: oldest first, as tickets are kept in the order they came."""
        for ticket, known in list(self._tickets.items()):
            waited_s = self._now_s - known.since_s
            if waited_s <= self._limits.max_wait_s:
                return
            if known.engine_id is None:
                self._leave(Leave(ticket))
                reason = (
                    f"No engine had room for {waited_s:.0f} s; limits.max_wait_s is "
                    f"{self._limits.max_wait_s:g} s. Try again later."
                )
                retry_after_s = self._limits.retry_after_s
                self._send(known.gateway, Refuse(ticket, "overdue", reason, retry_after_s))

    def _dispatch(self) -> None:
        """Hands out waiting requests as long as one of the engines has room."""
        while (admission := self._queue.admit(self._place, self._now_s)) is not None:
            logger.debug("%s runs: %s.", admission.request.ticket, admission.reason)
            self._grant(admission.request.ticket, self._engines[admission.fit.engine_id])

    def _place(self, request: Waiting) -> Fit | None:
        engine_id = choose_engine(self._view(e) for e in self._engines.values())
        return None if engine_id is None else Fit(engine_id)

    def _grant(self, ticket: TicketId, engine: _Engine) -> None:
        known = self._tickets[ticket]
        known.engine_id, endpoint = engine.report.engine_id, engine.report.endpoint
        assert endpoint is not None
        self._stop_waiting(known.tenant)
        engine.in_flight.add(ticket)
        self._send(known.gateway, Grant(ticket, engine.report.engine_id, endpoint))

    def _view(self, engine: _Engine) -> EngineView:
        limit = self._limits.max_running_per_engine or engine.report.max_running
        return EngineView(
            engine.report.engine_id,
            is_ready=engine.report.state == "ready" and engine.is_reachable,
            in_flight=len(engine.in_flight),
            room=limit,
        )

    # --- engines ----------------------------------------------------------------------------

    def _take_report(self, report: EngineReport) -> None:
        engine = self._engines.get(report.engine_id)
        if engine is None:
            engine = self._engines[report.engine_id] = _Engine(report, self._now_s)
            # A new router learns of running requests before it learns of their engines.
            engine.in_flight = {
                ticket for ticket, t in self._tickets.items() if t.engine_id == report.engine_id
            }
            is_news = True
        else:
            is_news = (report.state, report.detail) != (engine.report.state, engine.report.detail)
        engine.report = report
        engine.heard_s = self._now_s
        engine.is_reachable = True
        if is_news:
            logger.info("Engine %s: %s %s", report.engine_id, report.state, report.detail)
            self._dispatch()
            self._publish_status()

    def _mark_unreachable(self, engine_id: EngineId) -> None:
        """Until its next report: if that comes, only the connection had broken."""
        engine = self._engines.get(engine_id)
        if engine is not None and engine.is_reachable:
            logger.warning("Engine %s cannot be reached by a gateway.", engine_id)
            engine.is_reachable = False
            self._publish_status()

    def _drop_engine(self, engine_id: EngineId, reason: str) -> None:
        engine = self._engines.pop(engine_id, None)
        if engine is not None:
            logger.info("Engine %s is gone: %s.", engine_id, reason)

    def _drop_silent(self) -> None:
        for engine_id, engine in list(self._engines.items()):
            silent_s = self._now_s - engine.heard_s
            keep_s = _FORGET_FAILED_S if engine.report.state == "failed" else _SILENT_ENGINE_S
            if silent_s > keep_s:
                self._drop_engine(engine_id, f"nothing heard for {silent_s:.1f} s")
        for identity, gateway in list(self._gateways.items()):
            if self._now_s - gateway.heard_s > _SILENT_GATEWAY_S:
                for ticket in list(gateway.tickets):
                    self._leave(Leave(ticket))
                del self._gateways[identity]

    # --- answers ----------------------------------------------------------------------------

    def _send(self, gateway: bytes, mail: GatewayMail) -> None:
        self._listener.send(gateway, [self._encoder.encode(mail)])

    def _publish_status(self) -> None:
        status = self._status()
        for identity in self._gateways:
            self._send(identity, status)

    def _status(self) -> ModelStatus:
        engines = [
            EngineStatus(e.report.engine_id, e.report.state, e.report.detail, e.report.load)
            for e in self._engines.values()
            if e.is_reachable
        ]
        config_ids = [e.report.config_id for e in self._engines.values() if e.report.config_id]
        return ModelStatus(config_ids[-1] if config_ids else "", engines, len(self._queue))

    def _send_front_end(self, gateway: bytes, config_id: str) -> None:
        payload = self._front_ends.get(config_id)
        if payload is not None:
            self._send(gateway, FrontEndPayload(config_id, payload))
