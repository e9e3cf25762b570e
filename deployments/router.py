"""One actor a fairness domain: who waits, which engines there are, who goes where.

A domain is a base model with all its adapters, or several models whose tokens count together.

It decides nothing itself: `serve_app.policy` says who is next and on which engine. Its death loses
nothing: gateways repeat what waits, what runs and what has just ended (`Resume`) to a new router,
engines report themselves, and the counters are kept in a file (`router_state`). Clients of a router
that died only wait.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from deployments.fleet import SLEPT_S, Fleet, Handed, KnownEngine
from deployments.placer import Placer, Wish
from deployments.router_metrics import RouterMetrics
from deployments.router_state import (
    Keeper,
    RouterState,
    SavedRun,
    read_state,
    save_regularly,
)
from deployments.turn_order import cost_of, make_audit_log, make_turn_order
from serve_app.config import Settings
from serve_app.messages import (
    AdapterRef,
    Alive,
    Counters,
    Endpoint,
    EngineGone,
    EngineId,
    EngineLost,
    EngineMail,
    EngineReport,
    EngineUnreachable,
    Enqueue,
    FairnessStatus,
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
    Requeue,
    Resume,
    RouterMail,
    RunningTicket,
    Standing,
    TicketId,
)
from serve_app.metrics import Metrics
from serve_app.names import ModelName, TenantId
from serve_app.policy.admission import QueueView, admit
from serve_app.policy.fairness_figures import Longest, measure_fairness
from serve_app.policy.fairness_options import Share
from serve_app.policy.queueing import Waiting
from serve_app.policy.suspicion import is_suspect
from serve_app.policy.turns import Admission, Fit
from serve_app.wire import Mailbox

logger = logging.getLogger(__name__)

_STATUS_EVERY_S = 1.0
_DEFAULT_SHARE = Share()
_NOT_SAID = ModelName("")
_SILENT_GATEWAY_S = 10.0


@dataclass
class _Gateway:
    heard_s: float
    model: ModelName
    """Which of the router's models this connection is for; empty until it says so."""
    tickets: set[TicketId] = field(default_factory=set)


@dataclass
class _Ticket:
    gateway: bytes
    tenant: TenantId
    engine_id: EngineId | None
    """None while it waits."""
    since_s: float
    model: ModelName
    adapter: AdapterRef | None = None
    completion_tokens: int = 0
    """Those charged so far."""
    lost_tokens: int = 0
    """Of those, how many died with an engine and will be produced again."""
    strikes: int = 0
    """Engines in a row that died under it and gave it no token."""
    has_run: bool = False
    """Whether an engine has had it: it has paid for its prompt."""

    @property
    def handed(self) -> Handed:
        """As an engine's bookkeeping has it."""
        return Handed(self.tenant, None if self.adapter is None else self.adapter.id)


def _waiting(mail: Enqueue, model: ModelName) -> Waiting:
    """A model with an adapter is a lane: where one of its requests has no engine, none has."""
    lane = model if mail.adapter is None else f"{model}#{mail.adapter.id}"
    return Waiting(mail.ticket, mail.tenant, mail.prompt_tokens, mail.max_tokens, lane, model)


class Router:
    """Holds the waiting requests of one domain and hands each to an engine with room.

    Every gateway has a connection for each model; to the router each is a gateway of its own.

    Args:
        domain: Its name.
        settings: Bounds on waiting and running requests, and what is fair.
        listener: Where gateways and engines connect to.
        now: The monotonic clock.
        keeper: Keeps the counters for the next router; None leaves that with nothing to go on from.
        metrics: Of this process.
    """

    def __init__(
        self,
        domain: ModelName,
        settings: Settings,
        listener: Mailbox,
        now: Callable[[], float] = time.monotonic,
        keeper: Keeper | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._domain = domain
        self._limits = settings.limits
        self._fairness = settings.fairness
        self._preempts = settings.fairness.preempts and settings.fairness.policy == "vtc"
        self._listener = listener
        self._now = now
        self._keeper = keeper
        self._metrics = RouterMetrics(domain, metrics)
        self._audit = make_audit_log(domain, settings)
        self._cost = cost_of(settings, domain)
        self._queue = make_turn_order(
            settings.fairness, self._cost, None if self._audit is None else self._audit.add
        )
        self._longest = Longest()
        self._status_of_fairness = FairnessStatus()
        self._fleet = Fleet(lambda: self._limits.max_running_per_engine)
        self._placer = Placer(self._fleet, self._count, self._share_of, self._send_to_engine, now)
        self._gateways: dict[bytes, _Gateway] = {}
        self._tickets: dict[TicketId, _Ticket] = {}
        self._shares: dict[TenantId, Share] = {}
        self._n_waiting: Counter[TenantId] = Counter()
        """By tenant; those with none are left out."""
        self._n_waiting_of: Counter[ModelName] = Counter()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(RouterMail)
        self._newcomer: TicketId | None = None
        """The request that has just come: it alone may go beyond an engine's room."""
        self._now_s = self._started_s = self._looked_s = now()
        self._is_recovering = False
        """Whether some whom the last router knew may yet come back."""
        self._recover()

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
            if self._keeper is not None:
                tasks.create_task(save_regularly(self._keeper, self.state))
            if self._audit is not None:
                tasks.create_task(self._audit.run(self._queue.tell_all))

    def close(self) -> None:
        """Stops listening."""
        self._listener.close()

    async def _receive_mail(self) -> None:
        while True:
            sender, frames = await self._listener.receive()
            try:
                mail = self._decoder.decode(frames[0])
            except msgspec.DecodeError as error:
                logger.error("A message for the router of %s is malformed: %s", self._domain, error)
                continue
            self.handle(sender, mail)

    async def _look_around_regularly(self) -> None:
        while True:
            await asyncio.sleep(_STATUS_EVERY_S)
            self.look_around()

    def state(self) -> RouterState:
        """Returns all that gateways and engines cannot tell a successor."""
        return RouterState(
            self._cost,
            self._queue.snapshot(holds_waiting=False),
            {
                ticket: SavedRun(known.gateway, known.engine_id)
                for ticket, known in self._tickets.items()
                if known.has_run
            },
        )

    def _recover(self) -> None:
        """Goes on from where the last router was; gateways then say what has become of it."""
        data = self._keeper.load() if self._keeper is not None else None
        state = read_state(data, self._cost)
        if state is None:
            return
        logger.info("Going on from the counters of the last router of %s.", self._domain)
        self._is_recovering = True
        self._queue.restore(state.queue)
        for saved in state.queue.tickets:
            run = state.running[saved.ticket]
            gateway = self._gateways.setdefault(run.gateway, _Gateway(self._now_s, _NOT_SAID))
            gateway.tickets.add(saved.ticket)
            self._tickets[saved.ticket] = _Ticket(
                run.gateway,
                saved.tenant,
                run.engine_id,
                self._now_s,
                ModelName(saved.model),
                completion_tokens=saved.produced_tokens,
                has_run=True,
            )
            if run.engine_id is None:
                self._begin_to_wait(self._tickets[saved.ticket])

    def look_around(self) -> None:
        """Forgets who went silent and tells gateways how things stand; called regularly."""
        self._now_s = self._now()
        has_slept = self._now_s - self._looked_s > SLEPT_S
        self._looked_s = self._now_s
        if self._is_recovering and self._now_s - self._started_s > _SILENT_GATEWAY_S:
            self._is_recovering = False
            self._queue.stop_expecting()
        if not has_slept:
            self._drop_silent()
        self._dispatch()
        self._refuse_overdue()
        self._measure_fairness()
        self._publish_status()

    def _measure_fairness(self) -> None:
        views = list(self._fleet.views())
        window = sum(e.room_beyond if self._preempts else e.room for e in views)
        weights = {tenant: share.weight for tenant, share in self._shares.items()}
        figures = measure_fairness(self._queue, self._cost, self._longest, window, weights)
        self._status_of_fairness = FairnessStatus(figures.gap, figures.bound, len(figures.lags))
        self._metrics.show_fairness(figures)
        by_tenant = (engine.by_tenant for engine in self._fleet)
        self._metrics.show_crowd(self._n_waiting, by_tenant, self._limits.max_waiting)
        reports = (engine.report for engine in self._fleet)
        self._metrics.show_engines((report.model, report.state) for report in reports)

    def handle(self, sender: bytes, mail: RouterMail) -> None:
        """Takes one message; called for each, in order."""
        self._now_s = self._now()
        match mail:
            case EngineReport():
                self._take_report(mail)
                return
            case FrontEndOffer():
                self._fleet.take_offer(mail)
                return
            case Progress():
                self._charge(EngineId(sender.decode()), mail)
                self._tell_counters(sender)
                return
            case EngineGone():
                engine = self._fleet.drop(mail.engine_id, "it left")
                if engine is not None:
                    self._metrics.lose_engine(engine.report.model, "left")
                self._tell_lost(engine, is_leaving=True)
                self._publish_status()
                return
        if sender not in self._gateways and not isinstance(mail, Resume):
            # It was silent for so long that it was forgotten, tickets included.
            self._send(sender, Introduce())
            return
        gateway = self._gateways.setdefault(sender, _Gateway(self._now_s, _NOT_SAID))
        gateway.heard_s = self._now_s
        match mail:
            case Enqueue():
                self._enqueue(sender, mail)
            case Requeue():
                self._adopt(sender, mail.run)
                self._dispatch()
            case Leave():
                self._leave(mail)
                self._dispatch()
            case Resume():
                self._resume(sender, gateway, mail)
            case EngineUnreachable():
                if self._fleet.mark_unreachable(mail.engine_id):
                    self._publish_status()
            case FrontEndWanted():
                self._send_front_end(sender, mail.config_id)
            case Alive():
                pass

    # --- tickets ----------------------------------------------------------------------------

    def _enqueue(self, sender: bytes, mail: Enqueue) -> None:
        if mail.ticket in self._tickets:
            return
        self._add_waiting(sender, mail)
        model = self._gateways[sender].model
        if mail.adapter is not None:
            is_hit = self._fleet.has_adapter(model, mail.adapter.id)
            self._metrics.look_up_adapter(model, is_hit=is_hit)
        self._newcomer = mail.ticket
        self._dispatch()
        self._newcomer = None
        if self._tickets[mail.ticket].engine_id is not None:
            return
        self._placer.prepare_early(Wish(mail.tenant, self._gateways[sender].model, mail.adapter))
        refusal = admit(self._view_queue(mail.tenant), self._limits)
        if refusal is not None:
            self._leave(Leave(mail.ticket))
            self._metrics.refuse(model, "crowded")
            self._send(
                sender, Refuse(mail.ticket, "crowded", refusal.reason, refusal.retry_after_s)
            )

    def _add_waiting(self, sender: bytes, mail: Enqueue) -> None:
        self._add_ticket(sender, mail, None)
        self._note_share(mail)
        self._queue.arrive(_waiting(mail, self._gateways[sender].model), self._now_s)

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
        self._tickets[enqueue.ticket] = _Ticket(
            gateway,
            enqueue.tenant,
            engine_id,
            self._now_s,
            self._gateways[gateway].model,
            enqueue.adapter,
        )
        known = self._gateways[gateway]
        self._longest = self._longest.with_request(_waiting(enqueue, known.model))
        known.tickets.add(enqueue.ticket)
        if engine_id is None:
            self._begin_to_wait(self._tickets[enqueue.ticket])

    def _begin_to_wait(self, known: _Ticket) -> None:
        self._n_waiting[known.tenant] += 1
        self._n_waiting_of[known.model] += 1

    def _stop_waiting(self, known: _Ticket) -> None:
        self._n_waiting_of[known.model] -= 1
        self._n_waiting[known.tenant] -= 1
        if not self._n_waiting[known.tenant]:
            del self._n_waiting[known.tenant]

    def _leave(self, mail: Leave) -> None:
        """Ends a ticket and settles what it owes on the gateway's count."""
        known = self._tickets.pop(mail.ticket, None)
        if known is None:
            return
        self._gateways[known.gateway].tickets.discard(mail.ticket)
        if known.engine_id is None:
            self._stop_waiting(known)
        else:
            self._fleet.take_back(known.engine_id, mail.ticket)
        # The engine's last progress may still be on its way; it will find no ticket.
        self._queue.charge(mail.ticket, max(0, mail.completion_tokens - known.completion_tokens))
        if mail.is_finished:
            self._queue.finish(mail.ticket, mail.cached_tokens)
        else:
            n_tokens = max(mail.completion_tokens, known.completion_tokens)
            is_computed = n_tokens > 0 or mail.cached_tokens is not None
            self._queue.abort(mail.ticket, is_computed=is_computed)

    def _charge(self, engine_id: EngineId, progress: Progress) -> None:
        """Charges what an engine has produced; not what a ticket that went elsewhere got there."""
        for ticket, n_tokens in progress.tokens.items():
            known = self._tickets.get(ticket)
            if known is None or known.engine_id != engine_id:
                continue
            known.strikes = 0
            again = min(known.lost_tokens, n_tokens)
            known.lost_tokens -= again
            known.completion_tokens += n_tokens - again
            self._queue.charge(ticket, n_tokens - again)
        engine = self._fleet.get(engine_id)
        if engine is not None and any(map(engine.acquit, progress.tokens)):
            self._dispatch()

    def _tell_counters(self, engine: bytes) -> None:
        """Tells an engine how the tenants stand that have something there."""
        known = self._fleet.get(EngineId(engine.decode()))
        if known is not None:
            self._send(engine, Counters(self._queue.counters(known.by_tenant)))

    def _resume(self, sender: bytes, gateway: _Gateway, mail: Resume) -> None:
        gateway.model = mail.model
        for ended in mail.ended:
            self._leave(ended)
        self._drop_unmentioned(gateway, mail)
        for entry in mail.waiting:
            if entry.ticket not in self._tickets:
                self._add_waiting(sender, entry)
        for running in mail.running:
            self._adopt(sender, running)
        self._dispatch()
        self._send(sender, self._status(gateway.model))

    def _drop_unmentioned(self, gateway: _Gateway, mail: Resume) -> None:
        """Ends what a gateway knows no more, or knows otherwise: a grant may have been lost."""
        waiting = {entry.ticket for entry in mail.waiting}
        begun = {entry.enqueue.ticket for entry in mail.running}
        for ticket in list(gateway.tickets):
            if ticket not in (begun if self._tickets[ticket].has_run else waiting):
                self._leave(Leave(ticket))

    def _adopt(self, sender: bytes, running: RunningTicket) -> None:
        """Takes a ticket that has begun, and charges what its tenant has not been charged."""
        enqueue, n_tokens = running.enqueue, running.completion_tokens
        known = self._tickets.get(enqueue.ticket)
        waits_already = known is not None and known.has_run and known.engine_id is None
        if known is None:
            self._add_ticket(sender, enqueue, running.engine_id)
            known = self._tickets[enqueue.ticket]
        else:
            self._move(enqueue.ticket, known, running.engine_id)
            known.adapter, known.model = enqueue.adapter, self._gateways[sender].model
        known.has_run, known.strikes = True, running.strikes
        known.lost_tokens = max(known.completion_tokens - n_tokens, 0)
        known.completion_tokens = max(known.completion_tokens, n_tokens)
        self._note_share(enqueue)
        if running.engine_id is None and waits_already:
            return
        self._queue.adopt(_waiting(enqueue, known.model), n_tokens, self._now_s)
        if running.engine_id is None:
            self._queue.requeue(enqueue.ticket)
        else:
            self._fleet.hand(running.engine_id, enqueue.ticket, known.handed)

    def _move(self, ticket: TicketId, known: _Ticket, engine_id: EngineId | None) -> None:
        """Takes note of where a ticket is. One that waits again is the youngest to do so."""
        self._fleet.take_back(known.engine_id, ticket)
        if known.engine_id is None:
            self._stop_waiting(known)
        if engine_id is None:
            self._begin_to_wait(known)
            known.since_s = self._now_s
            self._tickets[ticket] = self._tickets.pop(ticket)
        known.engine_id = engine_id

    def _refuse_overdue(self) -> None:
        """Nobody waits for ever: oldest first, as tickets are kept in the order they came."""
        for ticket, known in list(self._tickets.items()):
            waited_s = self._now_s - known.since_s
            if waited_s <= self._limits.max_wait_s:
                return
            if known.engine_id is None:
                self._leave(Leave(ticket))
                self._metrics.refuse(known.model, "overdue")
                reason = (
                    f"No engine had room for {waited_s:.0f} s; limits.max_wait_s is "
                    f"{self._limits.max_wait_s:g} s. Try again later."
                )
                retry_after_s = self._limits.retry_after_s
                self._send(known.gateway, Refuse(ticket, "overdue", reason, retry_after_s))

    def _dispatch(self) -> None:
        """Hands out waiting requests as long as one of the engines has room."""
        if self._newcomer is None and not any(e.in_flight < e.room for e in self._fleet.views()):
            return
        while (admission := self._queue.admit(self._place, self._now_s)) is not None:
            logger.debug("%s runs: %s.", admission.request.ticket, admission.reason)
            self._grant(admission)

    def _place(self, request: Waiting) -> Fit | None:
        ticket = self._tickets[request.ticket]
        wish = Wish(request.tenant, ModelName(request.model), ticket.adapter)
        fit = self._placer.place(wish)
        if fit is None and request.ticket == self._newcomer and self._preempts:
            return self._placer.place_beyond(wish, self._n_waiting[wish.tenant])
        return fit

    def _count(self, tenants: Iterable[TenantId]) -> dict[TenantId, int]:
        return self._queue.counters(tenants)

    def _share_of(self, tenant: TenantId) -> Share:
        return self._shares.get(tenant, _DEFAULT_SHARE)

    def _grant(self, admission: Admission) -> None:
        ticket, engine = admission.request.ticket, self._fleet.get(admission.fit.engine_id)
        assert engine is not None, "only known engines are placed on"
        known = self._tickets[ticket]
        known.engine_id, endpoint = engine.report.engine_id, engine.report.endpoint
        assert endpoint is not None
        known.has_run = True
        if is_suspect(known.strikes, self._limits.max_engine_deaths_in_a_row):
            engine.on_probation = ticket
        self._stop_waiting(known)
        waited_s = self._now_s - known.since_s
        is_express = admission.fit.is_express
        self._metrics.grant(known.tenant, known.model, waited_s, express=is_express)
        self._fleet.hand(known.engine_id, ticket, known.handed)
        standing = Standing(
            known.tenant,
            admission.tier,
            admission.counter,
            admission.charged,
            admission.fit.is_express,
        )
        self._send(known.gateway, Grant(ticket, engine.report.engine_id, endpoint, standing))

    # --- who is there -----------------------------------------------------------------------

    def _take_report(self, report: EngineReport) -> None:
        running = (
            (ticket, known.handed)
            for ticket, known in self._tickets.items()
            if known.engine_id == report.engine_id
        )
        if self._fleet.take_report(report, running, self._now_s):
            if report.state == "failed":
                self._metrics.lose_engine(report.model, "failed")
                self._tell_lost(self._fleet.get(report.engine_id), is_leaving=False)
            self._dispatch()
            self._publish_status()

    def _tell_lost(self, engine: KnownEngine | None, *, is_leaving: bool) -> None:
        """Lets gateways take elsewhere what an engine has; they answer with `Requeue`."""
        if engine is not None:
            mail = EngineLost(engine.report.engine_id, is_leaving)
            for gateway in sorted({self._tickets[ticket].gateway for ticket in engine.in_flight}):
                self._send(gateway, mail)

    def _drop_silent(self) -> None:
        for engine in self._fleet.drop_silent(self._now_s):
            if engine.report.state != "failed":  # That was counted when it said so.
                self._metrics.lose_engine(engine.report.model, "silent")
            self._tell_lost(engine, is_leaving=False)
        for identity, gateway in list(self._gateways.items()):
            if self._now_s - gateway.heard_s > _SILENT_GATEWAY_S:
                for ticket in list(gateway.tickets):
                    self._leave(Leave(ticket))
                del self._gateways[identity]

    # --- answers ----------------------------------------------------------------------------

    def _send(self, receiver: bytes, mail: GatewayMail | EngineMail) -> None:
        self._listener.send(receiver, [self._encoder.encode(mail)])

    def _send_to_engine(self, engine_id: EngineId, mail: EngineMail) -> None:
        self._send(engine_id.encode(), mail)

    def _publish_status(self) -> None:
        statuses = {
            model: self._status(model) for model in {g.model for g in self._gateways.values()}
        }
        for identity, gateway in self._gateways.items():
            self._send(identity, statuses[gateway.model])

    def _status(self, model: ModelName) -> ModelStatus:
        return ModelStatus(
            self._fleet.config_id(model),
            self._fleet.statuses(model),
            self._n_waiting_of[model],
            self._status_of_fairness,
        )

    def _send_front_end(self, gateway: bytes, config_id: str) -> None:
        payload = self._fleet.front_end(config_id)
        if payload is not None:
            self._send(gateway, FrontEndPayload(config_id, payload))
