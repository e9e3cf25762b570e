"""What one HTTP request reserves and uses, from its first token to its settlement.

vLLM's front end calls the engine client once for each prompt of a request, and n completions come
of each. All calls that it makes before it waits for the first are one reservation, granted or
refused as a whole; what it asks for later (another turn with a tool's answer) is another one, which
does not count as a request again. The ledger's settlement and the usage record are made of the same
counts. Where nothing limits the request, the ledger is not asked.
"""

import asyncio
import time
import uuid
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING

from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine import EngineCoreOutput

from serve_app import telemetry
from serve_app.catalog import Caller
from serve_app.config_limits import PriceSpec
from serve_app.errors import OverloadedError
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.gateway_metrics import UNMEASURED, GatewayMetrics, RequestSeries
from serve_app.gateway.ledger_client import LedgerClient
from serve_app.gateway.limit_answers import describe_refusal
from serve_app.gateway.record import make_record
from serve_app.gateway.timings import RequestClock, Timings
from serve_app.ledger_messages import Granted, LeaseId, Refused, Reserve, Standing, Usage
from serve_app.names import KeyId, ModelName
from serve_app.usage import Outcome, Texts, UsageRecord, new_request_id

if TYPE_CHECKING:
    from serve_app.gateway.tracing import RequestTrace

_FREE = PriceSpec()


class Generation:
    """One call of the engine client: a prompt, and n completions of it.

    Attributes:
        meter: The request that it belongs to.
        prompt_tokens: Of the prompt, counted once.
        max_tokens: Of each completion.
        completion_tokens: Token ids that engines have produced so far.
        cached_tokens: Prompt tokens whose work an engine found done.
        is_started: Whether the front end waits for it.
        has_begun: Whether an engine got any of it. From then on its prompt is charged.
        request_ids: The engine requests that it became.
    """

    def __init__(self, turn: "Turn", prompt_tokens: int, max_tokens: tuple[int, ...]) -> None:
        self.meter = turn.meter
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.is_started = False
        self.has_begun = False
        self.request_ids: list[str] = []
        self._turn: Turn | None = turn

    def take(self, output: EngineCoreOutput) -> None:
        """Counts what a step produced for it."""
        self.has_begun = True
        if output.new_token_ids:
            self.completion_tokens += len(output.new_token_ids)
            self.meter.note_tokens(len(output.new_token_ids))
        if output.prefill_stats is not None:
            self.cached_tokens += output.prefill_stats.num_cached_tokens

    async def admit(self) -> int | None:
        """Waits for the ledger's consent; returns what each completion is to be cut to.

        Raises:
            GracefulHTTPError: It may not begin. `Meter.failure` says it better.
        """
        assert self._turn is not None, "admit comes before end"
        return await self._turn.reserve() if self.meter.is_limited else None

    def end(self) -> None:
        """Says that nothing more will be produced. May be called again."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.end_one()


class Turn:
    """Generations that begin together: one reservation."""

    def __init__(self, meter: "Meter", requests: int) -> None:
        self.meter = meter
        self.generations: list[Generation] = []
        self._requests = requests
        self._lease = LeaseId("")
        self._reserving: asyncio.Task[int | None] | None = None
        self._n_open = 0

    @property
    def is_open(self) -> bool:
        """Whether more generations may join."""
        return self._reserving is None

    def add(self, prompt_tokens: int, max_tokens: tuple[int, ...]) -> Generation:
        """Adds a generation to what will be reserved."""
        generation = Generation(self, prompt_tokens, max_tokens)
        self.generations.append(generation)
        self._n_open += 1
        return generation

    async def reserve(self) -> int | None:
        """Reserves for all generations, whichever asks first."""
        if self._reserving is None:
            self._lease = LeaseId(uuid.uuid4().hex)
            self._reserving = asyncio.create_task(self._reserve(), name="reserve")
        return await asyncio.shield(self._reserving)

    async def _reserve(self) -> int | None:
        meter = self.meter
        ask = Reserve(
            self._lease,
            meter.caller.tenant_id,
            meter.key_id,
            meter.model,
            requests=self._requests,
            prompt_tokens=sum(g.prompt_tokens for g in self.generations),
            max_tokens=tuple(n for g in self.generations for n in g.max_tokens),
            is_max_tokens_given=meter.is_max_tokens_given,
            adapter=meter.adapter,
        )
        asked_s = time.monotonic()
        try:
            answer = await meter.ledger.reserve(ask, self.usage)
        except OverloadedError as error:
            raise meter.fail(
                ApiError(503, error.message, retry_after_s=error.retry_after_s)
            ) from error
        finally:
            meter.clock.note_ledger(asked_s, time.monotonic())
        meter.standing = answer.standing
        if isinstance(answer, Refused):
            raise meter.fail(describe_refusal(answer, ask))
        assert isinstance(answer, Granted)
        return answer.max_output_tokens

    def usage(self) -> Usage:
        """What was used so far."""
        begun = [g for g in self.generations if g.has_begun]
        return Usage(sum(g.prompt_tokens for g in begun), sum(g.completion_tokens for g in begun))

    def end_one(self) -> None:
        """One of the generations has ended; with the last the turn is settled."""
        self._n_open -= 1
        if self._n_open or self._reserving is None:
            return
        if not self._reserving.done():
            self._reserving.cancel()
            return
        if self._reserving.cancelled() or self._reserving.exception() is not None:
            return
        has_begun = any(g.has_begun for g in self.generations)
        is_void = self.meter.is_refused and not has_begun
        self.meter.ledger.settle(self._lease, None if is_void else self.usage())


class Meter:
    """One HTTP request: whose it is, what it may take, and what came of it.

    Args:
        caller: Who is charged.
        ledger: Grants and settles.
        timeout_s: Seconds that the request may take; None means no bound.
        metrics: Where it is counted.
    """

    def __init__(
        self,
        caller: Caller,
        ledger: LedgerClient,
        timeout_s: float | None,
        metrics: GatewayMetrics = UNMEASURED,
    ) -> None:
        self.caller = caller
        self.request_id = telemetry.request_id.get()
        """What its client knows it by."""
        self.row_id = new_request_id()
        """What it is recorded by, once, whoever comes to write the record."""
        self.ledger = ledger
        self.timeout_s = timeout_s
        self.deadline_s = (
            None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        )
        """By the event loop's clock."""
        self.adapter = ""
        """Which adapter of the model; empty is the model itself."""
        self.model = ModelName("")
        """The base model; empty until the body is read."""
        self.version = ""
        """Which of its versions answers; empty is the model itself."""
        self.is_waking = False
        """Whether that slept when it was asked."""
        self.is_limited = caller.has_limits_on(self.model)
        """Whether the ledger has to consent."""
        self.is_max_tokens_given = False
        self.standing: Standing | None = None
        """How the ledger says things stand; None until it was asked."""
        self.is_refused = False
        """Whether the platform would not serve it: what no engine had is not charged then."""
        self.failure: ApiError | None = None
        """Why, where this gateway knows it better than the front end can say."""
        self._metrics = metrics
        self.series: RequestSeries | None = None
        """Where it is counted; None until the body is read."""
        self._outcome: Outcome = "refused"
        metrics.begin()
        self.clock = RequestClock(time.monotonic())
        """Where its time goes."""
        self.wants_last_chunk = False
        """Whether its client wants to read that at the end of a stream."""
        self.trace: RequestTrace | None = None
        """Its trace; None where requests are not traced."""
        self.record: UsageRecord | None = None
        """What is recorded of it, once it has ended."""
        self.price = _FREE
        """Of the model's tokens."""
        self.started_s = time.time()
        """When it arrived, in seconds since 1970, as is the next."""
        self.first_token_s: float | None = None
        self._turns: list[Turn] = []
        self._by_name: dict[str, Generation] = {}

    @property
    def key_id(self) -> KeyId:
        """The key that was used; empty where keys are off."""
        return self.caller.key.id if self.caller.key is not None else KeyId("")

    def begin(
        self, model: ModelName, price: PriceSpec, *, is_max_tokens_given: bool, adapter: str = ""
    ) -> None:
        """Learns what the body says."""
        self.model, self.adapter = model, adapter
        self.is_limited = self.caller.has_limits_on(model)
        self.is_max_tokens_given = is_max_tokens_given
        self.price = price
        self.series = self._metrics.of(self.caller.tenant_id, model, adapter)

    def plan(self, name: str, prompt_tokens: int, max_tokens: tuple[int, ...]) -> Generation:
        """Adds a generation. Nothing is reserved until the first one is admitted.

        Args:
            name: What the front end calls it.
            prompt_tokens: Length of its prompt.
            max_tokens: The most that each of its completions may have.
        """
        if not self._turns or not self._turns[-1].is_open:
            self._turns.append(Turn(self, requests=0 if self._turns else 1))
        generation = self._turns[-1].add(prompt_tokens, max_tokens)
        self._by_name[name] = generation
        return generation

    def find(self, name: str) -> Generation:
        """Returns the generation that the front end calls so."""
        return self._by_name[name]

    def note_tokens(self, n_tokens: int) -> None:
        """Some engine has produced something."""
        assert self.series is not None, "begin comes first"
        self.series.completion_tokens.add(n_tokens)
        if self.first_token_s is None:
            self.first_token_s = time.time()
            series = self.series.wake if self.is_waking else self.series.ttft
            series.observe(time.monotonic() - self.clock.started_s)

    def read_timings(self) -> Timings:
        """Where its time went so far."""
        return self.clock.timings(time.monotonic())

    def fail(self, error: ApiError) -> GracefulHTTPError:
        """Notes why it is refused; returns what vLLM's front end is to be told."""
        self.is_refused = True
        self.failure = self.failure or error
        return GracefulHTTPError(error.message, HTTPStatus(error.status))

    async def look(self) -> None:
        """Asks how things stand where nothing was reserved."""
        if self.standing is None:
            self.standing = await self.ledger.look(self.caller.tenant_id, self.key_id, self.model)

    def close(
        self, outcome: Outcome, status: int, texts: Texts | None = None
    ) -> UsageRecord | None:
        """Ends what was planned and never began; returns what is to be recorded.

        Nothing is of what needs no engine. What was refused before an engine had it uses nothing.

        Args:
            outcome: How the answer, which is complete, has ended.
            status: Its HTTP status; 0 where it never began.
            texts: What was asked and answered, where that is kept.
        """
        self.clock.end(time.monotonic())
        generations = [g for turn in self._turns for g in turn.generations]
        for generation in generations:
            if not generation.is_started:
                generation.end()
        begun = [g for g in generations if g.has_begun]
        was_asked = any(g.request_ids for g in generations)
        if not begun and (self.is_refused or not was_asked):
            if status < HTTPStatus.BAD_REQUEST:
                self._outcome = outcome
                return None
            outcome = "refused"
        self._outcome = outcome
        self.record = make_record(self, begun, outcome, status, texts)
        return self.record

    def record_so_far(self, status: int) -> UsageRecord | None:
        """Returns what is to be recorded if nothing more comes, as this gateway dies.

        Args:
            status: Of the answer so far.
        """
        begun = [g for turn in self._turns for g in turn.generations if g.has_begun]
        return make_record(self, begun, "failed", status, None) if begun else None

    def count(self, *, is_gone: bool = False) -> None:
        """Counts the request, once, when all is said.

        Args:
            is_gone: Whether its client went away before it was understood.
        """
        series = self.series or self._metrics.of(self.caller.tenant_id, "", "")
        series.end("cancelled" if is_gone else self._outcome, self.record)
        self._metrics.end()


current_meter: ContextVar[Meter] = ContextVar("current_meter")
"""The meter of the HTTP request that the present task works for."""
