"""A gateway's dealings with one base model: its router, its engines, the requests in flight.

    send(request) --Enqueue--> router --Grant--> add to the granted engine --outputs--> sinks

Nothing here waits for a request: answers arrive as messages, so that a client which goes away
while it is queued is simply withdrawn.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import msgspec
import zmq
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from serve_app.catalog import Caller
from serve_app.engine_frames import ABORT, ADD, ALIVE
from serve_app.messages import (
    Alive,
    Endpoint,
    EngineId,
    EngineMail,
    EngineUnreachable,
    Enqueue,
    FrontEndPayload,
    FrontEndWanted,
    GatewayMail,
    Grant,
    Introduce,
    Leave,
    ModelStatus,
    Refuse,
    Resume,
    RunningTicket,
    TicketId,
)
from serve_app.names import ModelName
from serve_app.router_link import FindRouter, RouterLink
from serve_app.wire import Frames, Link

logger = logging.getLogger(__name__)

_ALIVE_EVERY_S = 1.0
_ENDED_REPEATED = 4096
"""Ended tickets that a new router is told of; far more than end while there is none."""
_STATUS_OF_REFUSAL = {
    "crowded": HTTPStatus.SERVICE_UNAVAILABLE,
    "overdue": HTTPStatus.SERVICE_UNAVAILABLE,
}


class Sink(Protocol):
    """Who takes a model's outputs. Unknown request ids are to be ignored."""

    def begin(self, request_id: str) -> None:
        """Hears that a request is handed to an engine."""

    def take(self, outputs: EngineCoreOutputs) -> None:
        """Takes what one step of one engine produced."""

    def fail(self, request_id: str, error: Exception) -> None:
        """Ends one request with an error."""


@dataclass
class _Ticket:
    frames: Frames
    """The request as engines take it."""
    sink: Sink
    enqueue: Enqueue
    has_grammar: bool
    """Whether the request asks for structured output."""
    engine_id: EngineId | None = None
    """None while it waits."""
    completion_tokens: int = 0
    cached_tokens: int | None = None

    def take(self, output: EngineCoreOutput) -> None:
        """Counts what a step produced for it."""
        self.completion_tokens += len(output.new_token_ids)
        if output.prefill_stats is not None:
            self.cached_tokens = output.prefill_stats.num_cached_tokens


class ModelClient:
    """Sends one model's requests to whatever engine the router says.

    Args:
        name: The base model's name.
        identity: Of this connection, unique in the cluster.
        find_router: How to find the model's router.
        on_front_end: Called with (config_id, payload) when the engines' configuration is new.
    """

    def __init__(
        self,
        name: ModelName,
        identity: bytes,
        find_router: FindRouter,
        on_front_end: Callable[[str, bytes], None],
    ) -> None:
        self.name = name
        self.status = ModelStatus("", [], 0)
        self._identity = identity
        self._on_front_end = on_front_end
        self._front_end_id = ""
        self._tickets: dict[TicketId, _Ticket] = {}
        self._ended: deque[Leave] = deque(maxlen=_ENDED_REPEATED)
        self._engines: dict[EngineId, Link] = {}
        self._sinks: list[Sink] = []
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreOutputs)
        self._router = RouterLink(find_router, identity, self._read_mail, self._resume)
        self._alive_task: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether some engine serves at this moment."""
        return any(engine.state == "ready" for engine in self.status.engines)

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._router.start()
        self._alive_task = asyncio.create_task(self._stay_alive(), name=f"alive {self.name}")

    def close(self) -> None:
        """Drops every connection. Engines and the router abort what this gateway had there."""
        if self._alive_task is not None:
            self._alive_task.cancel()
        self._router.close()
        for link in self._engines.values():
            link.close()

    def add_sink(self, sink: Sink) -> None:
        """Delivers outputs to one more front end; an older one keeps its running requests."""
        self._sinks.append(sink)

    def remove_sink(self, sink: Sink) -> None:
        """Stops delivering to a front end that has no requests left."""
        self._sinks.remove(sink)

    def has_requests_of(self, sink: Sink) -> bool:
        """Whether a front end still waits for outputs."""
        return any(ticket.sink is sink for ticket in self._tickets.values())

    def send(self, request: EngineCoreRequest, caller: Caller, sink: Sink) -> None:
        """Queues a request at the router.

        Raises:
            VLLMValidationError: A number in it is too large to be sent.
        """
        frames = self._encode(request)
        ticket_id = TicketId(request.request_id)
        params = request.sampling_params
        enqueue = Enqueue(
            ticket_id,
            caller.tenant_id,
            caller.tenant.settings.weight,
            caller.tenant.settings.tier,
            prompt_tokens=len(request.prompt_token_ids or ()),
            max_tokens=(params.max_tokens or 0) if params is not None else 0,
        )
        has_grammar = params is not None and params.structured_outputs is not None
        self._tickets[ticket_id] = _Ticket(frames, sink, enqueue, has_grammar)
        self._router.send(enqueue)

    def _encode(self, request: EngineCoreRequest) -> Frames:
        """Encodes here, where a failure is the one request's own and its client hears of it."""
        try:
            frames: Frames = self._encoder.encode(request)
        except OverflowError as error:
            raise VLLMValidationError(
                "A number in this request does not fit into 64 bits. Send a smaller one.",
                parameter=_find_too_large(request.sampling_params),
            ) from error
        return frames

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests, waiting or running. Unknown ids are ignored."""
        by_engine: dict[EngineId, list[str]] = {}
        for request_id in request_ids:
            ticket = self._end(TicketId(request_id))
            if ticket is not None and ticket.engine_id is not None:
                by_engine.setdefault(ticket.engine_id, []).append(request_id)
        for engine_id, ids in by_engine.items():
            if engine_id in self._engines:
                self._engines[engine_id].send([ABORT, msgspec.msgpack.encode(ids)])

    def _end(self, ticket_id: TicketId, *, is_finished: bool = False) -> _Ticket | None:
        ticket = self._tickets.pop(ticket_id, None)
        if ticket is not None:
            counts = (ticket.completion_tokens, ticket.cached_tokens)
            leave = Leave(ticket_id, is_finished, *counts)
            if ticket.engine_id is not None:
                self._ended.append(leave)
            self._router.send(leave)
        return ticket

    def _fail(
        self,
        ticket_id: TicketId,
        reason: str,
        status: HTTPStatus = HTTPStatus.SERVICE_UNAVAILABLE,
    ) -> None:
        ticket = self._end(ticket_id)
        if ticket is not None:
            error = GracefulHTTPError(reason, status)
            ticket.sink.fail(ticket_id, error)

    async def _stay_alive(self) -> None:
        while True:
            await asyncio.sleep(_ALIVE_EVERY_S)
            self._router.send(Alive())
            for link in self._engines.values():
                link.send([ALIVE])
            self._hang_up_unused()

    def _hang_up_unused(self) -> None:
        """Closes links to engines that have left and run nothing of ours any more."""
        known = {engine.engine_id for engine in self.status.engines}
        used = {ticket.engine_id for ticket in self._tickets.values()}
        for engine_id in self._engines.keys() - known - used:
            self._engines.pop(engine_id).close()

    # --- from the router --------------------------------------------------------------------

    def _resume(self) -> None:
        tickets = self._tickets.values()
        self._router.send(
            Resume(
                waiting=[t.enqueue for t in tickets if t.engine_id is None],
                running=[
                    RunningTicket(t.enqueue, t.engine_id, t.completion_tokens)
                    for t in tickets
                    if t.engine_id is not None
                ],
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
            case Refuse():
                self._fail(mail.ticket, mail.reason, _STATUS_OF_REFUSAL[mail.kind])
            case Introduce():
                self._resume()
            case ModelStatus():
                self.status = mail
                self._ask_for_front_end()
            case FrontEndPayload():
                self._take_front_end(mail)

    def _ask_for_front_end(self) -> None:
        wanted = self.status.config_id
        if wanted and wanted != self._front_end_id:
            self._router.send(FrontEndWanted(wanted))

    def _take_front_end(self, mail: FrontEndPayload) -> None:
        if mail.config_id != self._front_end_id:
            self._front_end_id = mail.config_id
            self._on_front_end(mail.config_id, mail.payload)

    def _start_on_engine(self, grant: Grant) -> None:
        ticket = self._tickets.get(grant.ticket)
        if ticket is None:
            return  # Withdrawn while the grant was on its way; the router has our Leave.
        ticket.engine_id = grant.engine_id
        ticket.sink.begin(grant.ticket)
        link = self._engines.get(grant.engine_id)
        if link is None:
            link = self._engines[grant.engine_id] = self._connect(grant.engine_id, grant.endpoint)
        standing = msgspec.msgpack.encode(grant.standing)
        link.send([ADD, grant.ticket.encode(), standing, *ticket.frames])

    # --- from engines -----------------------------------------------------------------------

    def _connect(self, engine_id: EngineId, endpoint: Endpoint) -> Link:
        return Link(
            endpoint, self._identity, self._read_outputs, lambda: self._lose_engine(engine_id)
        )

    def _read_outputs(self, frames: list[zmq.Frame]) -> None:
        outputs: EngineCoreOutputs = self._decoder.decode(frames)
        for output in outputs.outputs:
            ticket = self._tickets.get(TicketId(output.request_id))
            if ticket is not None:
                ticket.take(output)
            if output.finished:
                self._finish(output)
        for sink in self._sinks:
            sink.take(outputs)

    def _finish(self, output: EngineCoreOutput) -> None:
        has_failed = output.finish_reason == FinishReason.ERROR
        ticket = self._end(TicketId(output.request_id), is_finished=not has_failed)
        if ticket is None or not has_failed:
            return
        if isinstance(output.stop_reason, str):  # The engine says why, such as an adapter's fault.
            error = GracefulHTTPError(output.stop_reason, HTTPStatus.SERVICE_UNAVAILABLE)
            ticket.sink.fail(output.request_id, error)
            return
        # Some grammars pass vLLM's check here and fail when an engine compiles them.
        has_spoken = ticket.completion_tokens > len(output.new_token_ids)
        if ticket.has_grammar and not has_spoken:
            invalid = VLLMValidationError(
                "The grammar or JSON schema that the output must follow cannot be compiled. "
                "Make it simpler.",
                parameter="structured_outputs",
            )
            ticket.sink.fail(output.request_id, invalid)

    def _lose_engine(self, engine_id: EngineId) -> None:
        self._engines.pop(engine_id, None)
        self._router.send(EngineUnreachable(engine_id))
        lost = [t for t, ticket in self._tickets.items() if ticket.engine_id == engine_id]
        if lost:
            logger.warning("Engine %s is lost with %d requests.", engine_id, len(lost))
        for ticket_id in lost:
            self._fail(ticket_id, "The engine that ran this request stopped. Send it again.")


def _find_too_large(params: SamplingParams | None) -> str | None:
    """The name of the parameter that msgpack cannot hold."""
    for name in params.__struct_fields__ if params is not None else ():
        value = getattr(params, name)
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            return str(name)
    return None
