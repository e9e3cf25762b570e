"""A gateway's dealings with one base model: its router, its engines, the requests in flight.

    send(request) --Enqueue--> router --Grant--> add to the granted engine --outputs--> sinks
                                 ^                              |
                                 +---Requeue--- engine lost ----+

A request that loses its engine goes on elsewhere from the tokens that have come; its sink, where
all that the client sees is made, notices nothing. Nothing here waits for a request: answers arrive
as messages, so that a client which goes away while it is queued is simply withdrawn.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus

import msgspec
import zmq
from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serve_app import telemetry
from serve_app.catalog import Caller
from serve_app.config import LimitSettings
from serve_app.engine_frames import ABORT, ACCEPTED, read_times
from serve_app.gateway.engine_links import EngineLinks
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.gateway_metrics import ModelSeries
from serve_app.gateway.model_state import NONE_YET, follow
from serve_app.gateway.retries import Retries
from serve_app.gateway.tickets import Sink, Ticket, grammar_error, make_ticket
from serve_app.gateway.timings import TicketClock
from serve_app.messages import (
    AdapterRef,
    AdaptersGone,
    Alive,
    EngineId,
    EngineLost,
    EngineMail,
    EngineTimes,
    EngineUnreachable,
    FrontEndPayload,
    FrontEndWanted,
    GatewayMail,
    Grant,
    Introduce,
    Leave,
    ModelStatus,
    Refuse,
    Requeue,
    Resume,
    SetLogLevel,
    TicketId,
    Wake,
)
from serve_app.names import ModelName
from serve_app.router_link import FindRouter, RouterLink

logger = logging.getLogger(__name__)

_ALIVE_EVERY_S = 1.0
_ENDED_REPEATED = 4096
"""Ended tickets that a new router is told of; far more than end while there is none."""
_STATUS_OF_REFUSAL = {
    "crowded": HTTPStatus.SERVICE_UNAVAILABLE,
    "overdue": HTTPStatus.SERVICE_UNAVAILABLE,
    "outdated": HTTPStatus.SERVICE_UNAVAILABLE,
}


class ModelClient:
    """Sends one model's requests to whatever engine the router says.

    Args:
        name: The base model's name.
        identity: Of this connection, unique in the cluster.
        find_router: How to find the model's router.
        limits: How often a request may lose its engine.
        on_front_end: Called with (config_id, payload) when the engines' configuration is new; None
            asks for none.
        series: Counts requests that lose their engine.
        on_adapter_failed: Called with an adapter that an engine could not have.
        sinks: Take what comes, and may be shared with another client.
        on_stranded: Only for a router of another cell: called with each request that it gave to an
            engine which cannot be reached from here. This client has given it up by then.
    """

    def __init__(
        self,
        name: ModelName,
        identity: bytes,
        find_router: FindRouter,
        limits: LimitSettings,
        on_front_end: Callable[[str, bytes], None] | None,
        series: ModelSeries,
        on_adapter_failed: Callable[[AdapterRef], None] = lambda ref: None,
        sinks: list[Sink] | None = None,
        *,
        on_stranded: Callable[[Ticket], None] | None = None,
    ) -> None:
        self.name = name
        self.status = ModelStatus("", [], 0)
        self.told_s = 0.0
        """When the router said so last, by the monotonic clock."""
        self._on_front_end = on_front_end
        self._on_stranded = on_stranded
        self._log_level = ""
        self._series = series
        self._on_adapter_failed = on_adapter_failed
        self._front_end_id = ""
        self._tickets: dict[TicketId, Ticket] = {}
        self._runs: dict[str, Ticket] = {}
        """Those that an engine has, by what it calls them."""
        self._ended: deque[Leave] = deque(maxlen=_ENDED_REPEATED)
        self.engines = EngineLinks(identity, self._read_engine, self._lose_engine)
        self._sinks = [] if sinks is None else sinks
        self._retries = Retries(limits)
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._router = RouterLink(find_router, identity, self._read_mail, self._resume)
        self._alive_task: asyncio.Task[None] | None = None
        self.missing = NONE_YET
        """What to say where nothing is known of any engine."""
        self.n_calling = 0
        """Requests that wait until an engine says how they are read."""

    def configure(self, limits: LimitSettings) -> None:
        """Takes new limits; they hold from the next event on."""
        self._retries.limits = limits

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._router.start()
        self._alive_task = asyncio.create_task(self._stay_alive(), name=f"alive {self.name}")

    def close(self) -> None:
        """Drops every connection. Engines and the router abort what this gateway had there."""
        if self._alive_task is not None:
            self._alive_task.cancel()
        self._router.close()
        self.engines.close()

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Keeps the router waking the model's engines, for a request that cannot be sent yet."""
        self.n_calling += 1
        self._router.send(Wake())
        try:
            yield
        finally:
            self.n_calling -= 1

    def add_sink(self, sink: Sink) -> None:
        """Delivers outputs to one more front end; an older one keeps its running requests."""
        self._sinks.append(sink)

    def remove_sink(self, sink: Sink) -> None:
        """Stops delivering to a front end that has no requests left."""
        self._sinks.remove(sink)

    def has_requests_of(self, sink: Sink) -> bool:
        """Whether a front end still waits for outputs."""
        return any(ticket.sink is sink for ticket in self._tickets.values())

    def send(
        self,
        request: EngineCoreRequest,
        caller: Caller,
        sink: Sink,
        clock: TicketClock | None = None,
    ) -> None:
        """Queues a request at the router.

        Args:
            request: What an engine is to do.
            caller: Whose it is.
            sink: Takes what comes of it.
            clock: Times it.

        Raises:
            vllm.exceptions.VLLMValidationError: A number in it is too large to be sent.
        """
        self.begin(make_ticket(request, caller, sink, self._encoder, clock))

    def begin(self, ticket: Ticket) -> None:
        """Queues a request that is new."""
        self._tickets[ticket.id] = ticket
        self._retries.note_request()
        self._router.send(ticket.enqueue)

    @property
    def is_connected(self) -> bool:
        """Whether messages reach the router at present, as far as is known."""
        return self._router.is_connected

    def waiting(self) -> list[Ticket]:
        """Returns the requests that have no engine, those first that came or lost theirs first."""
        return [ticket for ticket in self._tickets.values() if ticket.engine_id is None]

    @property
    def n_requests(self) -> int:
        """Requests that wait or run."""
        return len(self._tickets)

    def release(self, ticket: Ticket) -> None:
        """Gives up a request that waits, for another cell's client to go on with."""
        self._end(ticket.id)

    def take_over(self, ticket: Ticket) -> None:
        """Goes on with a request that another cell's client gave up."""
        self._tickets[ticket.id] = ticket
        # What it had was paid there; a prompt without a token was given back.
        ticket.paid_tokens = len(ticket.produced) or None
        ended = (leave for leave in self._ended if leave.ticket != ticket.id)
        self._ended = deque(ended, maxlen=_ENDED_REPEATED)
        self._router.send(Requeue(ticket.describe()) if ticket.n_runs else ticket.enqueue)

    def set_log_level(self, level: str) -> None:
        """Has the router tell everyone who is connected to it; empty is what settings say."""
        self._router.send(SetLogLevel(level))

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests, waiting or running. Unknown ids are ignored."""
        by_engine: dict[EngineId, list[str]] = {}
        for request_id in request_ids:
            ticket = self._end(TicketId(request_id))
            if ticket is not None and ticket.engine_id is not None:
                by_engine.setdefault(ticket.engine_id, []).append(ticket.run_id)
        for engine_id, run_ids in by_engine.items():
            self._abort_runs(engine_id, run_ids)

    def say_gone(self, ref: AdapterRef) -> None:
        """Tells the router that no new request gets this version of an adapter."""
        self._router.send(AdaptersGone([ref]))

    def _abort_runs(self, engine_id: EngineId, run_ids: list[str]) -> None:
        self.engines.send(engine_id, [ABORT, msgspec.msgpack.encode(run_ids)])

    def _end(
        self, ticket_id: TicketId, *, is_finished: bool = False, has_failed: bool = False
    ) -> Ticket | None:
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is not None:
            leave = ticket.leave(is_finished=is_finished, has_failed=has_failed)
            if ticket.n_runs:
                self._runs.pop(ticket.run_id, None)
                self._ended.append(leave)
            self._router.send(leave)
        return ticket

    def _refuse(self, mail: Refuse) -> None:
        ticket = self._end(mail.ticket)
        if ticket is not None:
            status = _STATUS_OF_REFUSAL[mail.kind]
            error = ApiError(status, mail.reason, retry_after_s=mail.retry_after_s)
            ticket.sink.fail(mail.ticket, error)

    async def _stay_alive(self) -> None:
        while True:
            await asyncio.sleep(_ALIVE_EVERY_S)
            self._router.send(Wake() if self.n_calling else Alive())
            self.engines.say_alive()
            self._hang_up_unused()

    def _hang_up_unused(self) -> None:
        """Closes links to engines that have left and run nothing of ours any more."""
        known = {engine.engine_id for engine in self.status.engines}
        used = {ticket.engine_id for ticket in self._tickets.values()}
        self.engines.keep(known | {engine_id for engine_id in used if engine_id is not None})

    # --- from the router --------------------------------------------------------------------

    def _resume(self) -> None:
        if self._on_stranded is not None:
            self.status = ModelStatus("", [], 0)  # It may be long since the cell said so.
        tickets = self._tickets.values()
        self._router.send(
            Resume(
                waiting=[t.enqueue for t in tickets if not t.n_runs],
                running=[t.describe() for t in tickets if t.n_runs],
                ended=list(self._ended),
                model=self.name,
            )
        )
        # A router that is new may know another configuration than its predecessor did.
        self._ask_for_front_end()

    def _read_mail(self, mail: GatewayMail | EngineMail) -> None:
        match mail:
            case Grant():
                self._start_on_engine(mail)
            case EngineLost():
                self._leave_engine(mail.engine_id, has_died=not mail.is_leaving)
            case Refuse():
                self._refuse(mail)
            case Introduce():
                self._resume()
            case ModelStatus():
                self._log_as(mail.log_level)
                self._take_status(mail)
                self._ask_for_front_end()
            case FrontEndPayload():
                self._take_front_end(mail)

    def _log_as(self, level: str) -> None:
        # Another cell's operators say nothing of what is logged here.
        if level != self._log_level and self._on_stranded is None:
            telemetry.set_log_level(level)
        self._log_level = level

    def _take_status(self, status: ModelStatus) -> None:
        self.status, self.told_s = follow(self.status, status), time.monotonic()

    def _ask_for_front_end(self) -> None:
        wanted = self.status.config_id
        if wanted and wanted != self._front_end_id and self._on_front_end is not None:
            self._router.send(FrontEndWanted(wanted))

    def _take_front_end(self, mail: FrontEndPayload) -> None:
        if mail.config_id != self._front_end_id and self._on_front_end is not None:
            self._front_end_id = mail.config_id
            self._on_front_end(mail.config_id, mail.payload)

    def _start_on_engine(self, grant: Grant) -> None:
        ticket = self._tickets.get(grant.ticket)
        if ticket is None or ticket.engine_id is not None:
            return  # Withdrawn while the grant was on its way; the router has our Leave.
        self.engines.start(grant, ticket.start(grant))
        self._runs[ticket.run_id] = ticket
        ticket.sink.begin(ticket.id)

    # --- from engines -----------------------------------------------------------------------

    def _read_engine(self, frames: list[zmq.Frame]) -> None:
        if len(frames) == 2 and frames[0].buffer == ACCEPTED:
            ticket = self._runs.get(bytes(frames[1].buffer).decode())
            if ticket is not None:
                ticket.is_accepted = True
        else:
            self._read_outputs(frames)

    def _read_outputs(self, frames: list[zmq.Frame]) -> None:
        begun, *rest = frames
        times = read_times(begun)
        outputs: EngineCoreOutputs = self._decoder.decode(rest)
        outputs.outputs = [output for output in outputs.outputs if self._accept(output, times)]
        for output in outputs.outputs:
            if output.finished:
                self._finish(output)
        for sink in self._sinks if outputs.outputs else ():
            sink.take(outputs)

    def _accept(self, output: EngineCoreOutput, times: Mapping[str, EngineTimes]) -> bool:
        """Keeps what came for a ticket, under the ticket's name; says whether it is for anyone."""
        ticket = self._runs.get(output.request_id)
        if ticket is None:
            return False  # It was aborted, or goes on elsewhere.
        begun = times.get(output.request_id)
        output.request_id = ticket.id
        if ticket.moved_s is not None and output.new_token_ids:
            recomputed_tokens = ticket.enqueue.prompt_tokens + len(ticket.produced)
            self._series.go_on(time.monotonic() - ticket.moved_s, recomputed_tokens)
            ticket.moved_s = None
        ticket.take(output, begun)
        if output.finish_reason == FinishReason.ABORT:
            # Not by us: the engine ends and could not say so in time, or took us for dead.
            self._requeue(ticket, has_died=False)
            output.finish_reason = None
            return bool(output.new_token_ids)
        if output.finish_reason == FinishReason.ERROR and self._retries.may_try_failed(
            ticket, output
        ):
            self._requeue(ticket, has_died=False, has_failed=True)
            return False
        return True

    def _finish(self, output: EngineCoreOutput) -> None:
        has_failed = output.finish_reason == FinishReason.ERROR
        ticket_id = TicketId(output.request_id)
        is_named = isinstance(output.stop_reason, str) or self._tickets[ticket_id].has_grammar
        ticket = self._end(
            ticket_id, is_finished=not has_failed, has_failed=has_failed and not is_named
        )
        if ticket is None or not has_failed:
            return
        if isinstance(output.stop_reason, str):  # The engine says why, such as an adapter's fault.
            if ticket.enqueue.adapter is not None:
                self._on_adapter_failed(ticket.enqueue.adapter)
            error = GracefulHTTPError(output.stop_reason, HTTPStatus.SERVICE_UNAVAILABLE)
            ticket.sink.fail(output.request_id, error)
            return
        # Some grammars pass vLLM's check here and fail when an engine compiles them.
        has_spoken = len(ticket.produced) > len(output.new_token_ids)
        if ticket.has_grammar and not has_spoken:
            ticket.sink.fail(ticket.id, grammar_error())

    def _lose_engine(self, engine_id: EngineId, was_heard: bool) -> None:
        if was_heard or self._on_stranded is None:
            self._router.send(EngineUnreachable(engine_id))
            self._leave_engine(engine_id, has_died=True)
            return
        # It is rather the way to that cell which is cut: for others nothing is wrong with the
        # engine, and its router would grant it again at once.
        for ticket in self._running_on(engine_id):
            del self._runs[ticket.run_id]
            ticket.lose_engine(has_died=False)
            self.release(ticket)
            self._on_stranded(ticket)

    def _running_on(self, engine_id: EngineId) -> list[Ticket]:
        return [ticket for ticket in self._runs.values() if ticket.engine_id == engine_id]

    def _leave_engine(self, engine_id: EngineId, *, has_died: bool) -> None:
        """Takes elsewhere what an engine has. If it still hears anything, it hears so."""
        lost = self._running_on(engine_id)
        if not lost:
            return
        logger.warning("Engine %s is lost; its %d requests move.", engine_id, len(lost))
        self._abort_runs(engine_id, [ticket.run_id for ticket in lost])
        for ticket in lost:
            self._requeue(ticket, has_died=has_died)

    def _requeue(self, ticket: Ticket, *, has_died: bool, has_failed: bool = False) -> None:
        del self._runs[ticket.run_id]
        logger.info("%s goes on elsewhere after %d tokens.", ticket.id, len(ticket.produced))
        failed_on = ticket.engine_id if has_failed else None
        end = self._retries.move(ticket, has_died=has_died, has_failed=has_failed)
        if end is None:
            self._series.move("died" if has_died else "failed" if has_failed else "left")
            if ticket.moved_s is None:
                ticket.moved_s = time.monotonic()
            self._router.send(Requeue(ticket.describe(), failed_on))
            return
        self._series.stop()
        self._end(ticket.id)
        ticket.sink.fail(ticket.id, end)
