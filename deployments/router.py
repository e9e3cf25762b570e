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
from collections.abc import Callable

import msgspec

from deployments.adapter_farewell import AdapterFarewell
from deployments.announcer import Announcer
from deployments.autoscaler import Autoscaler, Board
from deployments.dispatcher import Dispatcher
from deployments.door import Door
from deployments.fleet import SLEPT_S, Fleet
from deployments.known_engine import SILENT_ENGINE_S, KnownEngine
from deployments.load_charges import LoadCharges
from deployments.mender import Control, Mender
from deployments.placer import Placer
from deployments.router_metrics import RouterMetrics
from deployments.router_state import (
    Keeper,
    RouterState,
    read_state,
    save_regularly,
)
from deployments.service_exchange import ServiceExchange
from deployments.start_ups import StartUps
from deployments.ticket_book import TicketBook
from deployments.turn_order import cost_of, make_audit_log, make_turn_order
from serve_app import telemetry
from serve_app.bank_link import BankLink
from serve_app.config import Settings
from serve_app.config_model import ModelSettings
from serve_app.messages import (
    AdapterRef,
    AdaptersGone,
    Alive,
    Counters,
    Drop,
    Endpoint,
    EngineGone,
    EngineId,
    EngineLost,
    EngineMail,
    EngineReport,
    EngineUnreachable,
    Enqueue,
    FrontEndOffer,
    FrontEndPayload,
    FrontEndWanted,
    GatewayMail,
    Introduce,
    Leave,
    LogLevel,
    Progress,
    Requeue,
    Resume,
    RouterMail,
    SetLogLevel,
    Wake,
)
from serve_app.metrics import Metrics
from serve_app.names import ModelName
from serve_app.policy.fairness import Vtc
from serve_app.wire import Mailbox

logger = logging.getLogger(__name__)

_STATUS_EVERY_S = 1.0
_SILENT_GATEWAY_S = 10.0


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
        board: Where it is written how many engines are wanted; None leaves as many as there are.
        control: Serve, to have it start engines that it has given up; None leaves those.
    """

    def __init__(
        self,
        domain: ModelName,
        settings: Settings,
        listener: Mailbox,
        now: Callable[[], float] = time.monotonic,
        keeper: Keeper | None = None,
        metrics: Metrics | None = None,
        board: Board | None = None,
        control: Control | None = None,
    ) -> None:
        self._domain = domain
        self._limits = settings.limits
        self._listener = listener
        self._now = now
        self._keeper = keeper
        self._metrics = RouterMetrics(domain, metrics)
        self._audit = make_audit_log(domain, settings)
        self._cost = cost_of(settings, domain)
        self._queue = make_turn_order(
            settings.fairness, self._cost, None if self._audit is None else self._audit.add
        )
        self._fleet = Fleet(lambda: self._limits.max_running_per_engine, now)
        self._farewell = AdapterFarewell(self._drop_adapter)
        self._tickets = TicketBook(self._queue, self._fleet, self._farewell)
        self._load_charges = LoadCharges(self._queue, settings.fairness.adapter_load_tokens)
        placer = Placer(
            self._fleet, self._queue.counters, self._tickets.share_of, self._send_to_engine, now
        )
        preempts = settings.fairness.preempts and settings.fairness.policy == "vtc"
        self._dispatcher = Dispatcher(
            self._queue,
            self._fleet,
            self._tickets,
            placer,
            self._send,
            self._metrics,
            lambda: self._limits.max_engine_deaths_in_a_row,
            preempts=preempts,
        )
        models = self._follow_models(settings)
        self._autoscaler = Autoscaler(models, self._cost, self._fleet, self._tickets, board)
        self._door = Door(self._tickets, self._autoscaler, settings, self._metrics, self._send)
        self._mender = None if control is None else Mender(control, self._autoscaler.count_staff)
        self._announcer = Announcer(
            self._queue,
            self._cost,
            self._fleet,
            self._tickets,
            self._autoscaler,
            self._send,
            placer.arrivals,
            {} if self._mender is None else self._mender.notes,
            slack=settings.fairness.locality_quantum + _most_ahead(settings),
            preempts=preempts,
            metrics=self._metrics,
        )
        self._elsewhere = _make_exchange(domain, settings, self._queue)
        self._start_ups = StartUps(self._metrics.metrics)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(RouterMail)
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
        self._door.configure(settings)
        self._announcer.log_level = ""  # The settings have just been applied.
        self._autoscaler.configure(self._follow_models(settings))
        self._dispatcher.dispatch(self._now_s)

    def _follow_models(self, settings: Settings) -> list[ModelSettings]:
        found = [model for model in settings.versions if model.domain_name == self._domain]
        self._fleet.served = frozenset(model.name for model in found)
        return found

    async def run(self) -> None:
        """Receives and decides until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive_mail())
            tasks.create_task(self._look_around_regularly())
            tasks.create_task(self._metrics.watch())
            tasks.create_task(self._autoscaler.publish_regularly())
            if self._mender is not None:
                tasks.create_task(self._mender.run())
            if self._keeper is not None:
                tasks.create_task(save_regularly(self._keeper, self.state))
            if self._elsewhere is not None:
                tasks.create_task(self._elsewhere.run())
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
        queue = self._queue.snapshot(holds_waiting=False)
        return RouterState(self._cost, queue, self._tickets.saved_runs())

    def _recover(self) -> None:
        """Goes on from where the last router was; gateways then say what has become of it."""
        data = self._keeper.load() if self._keeper is not None else None
        state = read_state(data, self._cost)
        if state is None:
            return
        logger.info("Going on from the counters of the last router of %s.", self._domain)
        self._is_recovering = True
        self._queue.restore(state.queue)
        self._tickets.restore(state, self._now_s)

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
        self._dispatcher.dispatch(self._now_s)
        self._door.refuse_overdue(self._now_s)
        self._door.refuse_outdated(self._now_s)
        self._autoscaler.look(self._now_s)
        self._announcer.measure_fairness()
        self._announcer.show(self._limits.max_waiting)
        self._announcer.is_settling = self._now_s - self._started_s < SILENT_ENGINE_S
        self._announcer.publish()
        if self._announcer.log_level:
            self._tell_log_level()

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
                self._announcer.publish()
                return
        if sender not in self._tickets.gateways and not isinstance(mail, Resume):
            # It was silent for so long that it was forgotten, tickets included.
            self._send(sender, Introduce())
            return
        self._tickets.hear(sender, self._now_s)
        match mail:
            case Enqueue():
                self._enqueue(sender, mail)
            case Requeue():
                if mail.failed_on is not None:
                    self._fleet.note_failure(mail.failed_on)
                self._tickets.adopt(sender, mail.run, self._now_s)
                self._dispatcher.dispatch(self._now_s)
            case Leave():
                self._autoscaler.note_end(mail)
                self._tickets.leave(mail)
                self._door.refuse_late(self._now_s)
                self._dispatcher.dispatch(self._now_s)
            case Resume():
                self._tickets.resume(sender, mail, self._now_s)
                self._dispatcher.dispatch(self._now_s)
                self._announcer.tell(sender)
            case EngineUnreachable():
                if self._fleet.mark_unreachable(mail.engine_id):
                    self._announcer.publish()
            case Wake():
                self._autoscaler.note_wake(self._tickets.gateways[sender].model, self._now_s)
            case FrontEndWanted():
                self._send_front_end(sender, mail.config_id)
            case AdaptersGone():
                self._farewell.begin(mail.refs)
            case SetLogLevel():
                self._set_log_level(mail.level)
            case Alive():
                pass

    # --- tickets ----------------------------------------------------------------------------

    def _enqueue(self, sender: bytes, mail: Enqueue) -> None:
        if mail.ticket in self._tickets:
            return
        self._tickets.arrive(sender, mail, self._now_s)
        self._autoscaler.note_arrival(self._tickets[mail.ticket])
        if mail.adapter is not None:
            model = self._tickets[mail.ticket].model
            is_hit = self._fleet.has_adapter(model, mail.adapter.id)
            self._metrics.look_up_adapter(model, is_hit=is_hit)
        self._dispatcher.dispatch_newcomer(mail.ticket, self._now_s)
        if self._tickets[mail.ticket].engine_id is not None:
            return
        self._door.admit(mail.ticket, self._dispatcher.n_turns, self._now_s)

    def _charge(self, engine_id: EngineId, progress: Progress) -> None:
        self._autoscaler.note_progress(engine_id, progress, self._now_s)
        self._tickets.charge(engine_id, progress)
        if self._fleet.note_success(engine_id, progress.tokens):
            self._dispatcher.dispatch(self._now_s)

    def _tell_counters(self, engine: bytes) -> None:
        """Tells an engine how the tenants stand that have something there."""
        known = self._fleet.get(EngineId(engine.decode()))
        if known is not None:
            self._send(engine, Counters(self._queue.counters(known.by_tenant)))

    # --- who is there -----------------------------------------------------------------------

    def _take_report(self, report: EngineReport) -> None:
        running = self._tickets.running_on(report.engine_id)
        known = self._fleet.get(report.engine_id)
        before = None if known is None else known.report.state
        hold_on = self._start_ups.note(report, before)
        if hold_on is not None:
            self._send_to_engine(report.engine_id, hold_on)
        is_news = self._fleet.take_report(report, running, self._now_s)
        self._load_charges.charge(self._fleet.get(report.engine_id))
        if is_news:
            if report.state == "failed" and before != "failed":
                self._metrics.lose_engine(report.model, "failed")
                self._tell_lost(self._fleet.get(report.engine_id), is_leaving=False)
            self._dispatcher.dispatch(self._now_s)
            self._announcer.publish()

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
        self._tickets.drop_gateways(_SILENT_GATEWAY_S, self._now_s)

    # --- what operators ask for --------------------------------------------------------------

    def _set_log_level(self, level: str) -> None:
        telemetry.set_log_level(level)
        self._announcer.log_level = level
        self._announcer.publish()
        self._tell_log_level()

    def _tell_log_level(self) -> None:
        """Said again and again, as engines come."""
        for engine in self._fleet:
            self._send_to_engine(engine.report.engine_id, LogLevel(self._announcer.log_level))

    # --- answers ----------------------------------------------------------------------------

    def _send(self, receiver: bytes, mail: GatewayMail | EngineMail) -> None:
        self._listener.send(receiver, [self._encoder.encode(mail)])

    def _send_to_engine(self, engine_id: EngineId, mail: EngineMail) -> None:
        self._send(engine_id.encode(), mail)

    def _drop_adapter(self, ref: AdapterRef) -> None:
        for engine in self._fleet:
            if engine.report.model == ref.base:
                self._send_to_engine(engine.report.engine_id, Drop([ref]))

    def _send_front_end(self, gateway: bytes, config_id: str) -> None:
        payload = self._fleet.front_end(config_id)
        if payload is not None:
            self._send(gateway, FrontEndPayload(config_id, payload))


def _make_exchange(domain: ModelName, settings: Settings, queue: Vtc) -> ServiceExchange | None:
    """Returns what makes turns count over cells, where the settings want that."""
    cell, most_ahead = settings.cell, _most_ahead(settings)
    if cell is None or not most_ahead:
        return None
    return ServiceExchange(BankLink(cell), domain, queue, most_ahead)


def _most_ahead(settings: Settings) -> float:
    """Returns by how much counters may differ for what other cells serve."""
    cell = settings.cell
    return 0.0 if cell is None or settings.fairness.policy != "vtc" else cell.most_ahead
