"""A request on its way through engines: all that is needed to go on when one is lost."""

import time
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.serial_utils import MsgpackEncoder

from serve_app.catalog import Caller
from serve_app.engine_frames import ADD
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.timings import TicketClock
from serve_app.messages import (
    AdapterRef,
    EngineId,
    EngineTimes,
    Enqueue,
    Grant,
    Handover,
    Leave,
    RunningTicket,
    TicketId,
)
from serve_app.policy.prefixes import mark_prompt
from serve_app.policy.suspicion import Record
from serve_app.wire import Frames


class Sink(Protocol):
    """Who takes a model's outputs. Unknown request ids are to be ignored.

    Attributes:
        dialect: Of the engines that its requests are read for.
    """

    dialect: str

    def begin(self, request_id: str) -> None:
        """Hears that a request is handed to an engine."""

    def take(self, outputs: EngineCoreOutputs) -> None:
        """Takes what one step of one engine produced."""

    def fail(self, request_id: str, error: Exception) -> None:
        """Ends one request with an error."""


@dataclass
class Ticket:
    """A request as its gateway keeps it until it ends."""

    frames: Frames
    """The request as engines take it, the same for each."""
    sink: Sink
    enqueue: Enqueue
    has_grammar: bool
    """Whether the request asks for structured output."""
    engine_id: EngineId | None = None
    """None while it waits."""
    n_runs: int = 0
    """Engines that it was handed to."""
    is_accepted: bool = False
    """Whether its present engine has said that it took it."""
    n_failures: int = 0
    """Engines that could not run it, and live."""
    produced: list[int] = field(default_factory=list)
    """Tokens that have come, of whatever engine."""
    cached_tokens: int | None = None
    record: Record = field(default_factory=Record)
    clock: TicketClock = field(default_factory=lambda: TicketClock(time.monotonic()))
    moved_s: float | None = None
    """When it lost its engine; None once it has got something from another one since."""
    paid_tokens: int | None = None
    """Tokens that it had when another cell's router took it over, where these and its prompt were
    paid; None is paid where it is now."""

    @property
    def id(self) -> TicketId:
        """Its name, which is the request's."""
        return self.enqueue.ticket

    @property
    def run_id(self) -> str:
        """What its present engine calls it: no two runs have the same name."""
        return self.id if self.n_runs == 1 else f"{self.id}~{self.n_runs}"

    def start(self, grant: Grant) -> Frames:
        """Begins or goes on; returns what its engine is to be sent."""
        self.engine_id = grant.engine_id
        self.n_runs += 1
        self.is_accepted = False
        self.clock.grant(grant, time.monotonic())
        handover = Handover(self.id, grant.standing, self.produced)
        return [ADD, self.run_id.encode(), msgspec.msgpack.encode(handover), *self.frames]

    def take(self, output: EngineCoreOutput, times: EngineTimes | None = None) -> None:
        """Keeps what a step produced for it, and how it began there, where that is said."""
        if output.new_token_ids or output.pooling_output is not None:
            self.clock.hear(times, time.monotonic())
        if output.new_token_ids:
            self.produced += output.new_token_ids
            self.record = self.record.with_token()
        if output.prefill_stats is not None:
            self.cached_tokens = output.prefill_stats.num_cached_tokens

    def lose_engine(self, *, has_died: bool) -> None:
        """Waits again; what was produced stays."""
        self.engine_id = None
        self.clock.lose_engine(time.monotonic())
        if has_died:
            self.record = self.record.with_death(was_there=self.is_accepted)

    def explain_losses(self) -> ApiError:
        """Why it is not tried again, for its client."""
        return ApiError(
            500,
            f"{self.record.losses} engines stopped while they ran this request. It may be what "
            "stops them, and is not tried again.",
            code="engines_stopped",
        )

    def describe(self) -> RunningTicket:
        """What a router must know of it once it has begun."""
        return RunningTicket(
            self.enqueue,
            self.engine_id,
            len(self.produced),
            self.record.strikes,
            self.paid_tokens,
        )

    def leave(self, *, is_finished: bool, has_failed: bool = False) -> Leave:
        """What a router must know of its end."""
        n_tokens = len(self.produced)
        return Leave(self.id, is_finished, n_tokens, self.cached_tokens, has_failed)


def make_ticket(
    request: EngineCoreRequest,
    caller: Caller,
    sink: Sink,
    encoder: MsgpackEncoder,
    clock: TicketClock | None = None,
) -> Ticket:
    """Encodes a request here, where a failure is its own and its client hears of it.

    Args:
        request: What an engine is to do.
        caller: Whose it is.
        sink: Takes what comes of it.
        encoder: As engines read it.
        clock: Times it; None makes one that nobody looks at.

    Raises:
        VLLMValidationError: A number in it is too large to be sent.
    """
    params = request.sampling_params
    try:
        frames: Frames = encoder.encode(request)
    except OverflowError as error:
        raise VLLMValidationError(
            "A number in this request does not fit into 64 bits. Send a smaller one.",
            parameter=_find_too_large(params),
        ) from error
    enqueue = Enqueue(
        TicketId(request.request_id),
        caller.tenant_id,
        caller.tenant.settings.weight,
        caller.tenant.settings.tier,
        prompt_tokens=len(request.prompt_token_ids or ()),
        max_tokens=(params.max_tokens or 0) if params is not None else 0,
        adapter=_adapter_of(request),
        dialect=sink.dialect,
        marks=_mark(request),
    )
    has_grammar = params is not None and params.structured_outputs is not None
    ticket = Ticket(frames, sink, enqueue, has_grammar)
    if clock is not None:
        ticket.clock = clock
    return ticket


def grammar_error() -> VLLMValidationError:
    """What a client hears whose grammar passes vLLM's check and then fails in an engine."""
    return VLLMValidationError(
        "The grammar or JSON schema that the output must follow cannot be compiled. "
        "Make it simpler.",
        parameter="structured_outputs",
    )


def _adapter_of(request: EngineCoreRequest) -> AdapterRef | None:
    lora = request.lora_request
    if lora is None:
        return None
    base = lora.base_model_name or ""
    return AdapterRef.at(lora.lora_path, id=lora.lora_int_id, name=lora.lora_name, base=base)


def _mark(request: EngineCoreRequest) -> bytes:
    """Marks of its prompt; none where tokens do not say all of it, as with images."""
    if request.mm_features or request.prompt_embeds is not None or not request.prompt_token_ids:
        return b""
    adapter = "" if request.lora_request is None else request.lora_request.lora_path
    return mark_prompt(request.prompt_token_ids, f"{request.cache_salt or ''}\0{adapter}")


def _find_too_large(params: SamplingParams | None) -> str | None:
    """The name of the parameter that msgpack cannot hold."""
    for name in params.__struct_fields__ if params is not None else ():
        value = getattr(params, name)
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            return str(name)
    return None
