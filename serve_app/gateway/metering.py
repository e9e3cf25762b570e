"""What one HTTP request reserves and uses, from its first token counted to its settlement.

vLLM's front end calls the engine client once for each prompt of a request, and n completions come
of each. All calls that it makes before it waits for the first are one reservation, granted or
refused as a whole; what it asks for later (another turn with a tool's answer) is another one, which
does not count as a request again.
"""

import asyncio
import uuid
from contextvars import ContextVar
from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError

from serve_app.errors import OverloadedError
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.ledger_client import LedgerClient
from serve_app.gateway.limit_answers import describe_refusal
from serve_app.ledger_messages import Granted, LeaseId, Refused, Reserve, Standing, Usage
from serve_app.names import KeyId, ModelName, TenantId


class Generation:
    """One call of the engine client: a prompt, and n completions of it.

    Attributes:
        prompt_tokens: Of the prompt, counted once.
        max_tokens: Of each completion.
        completion_tokens: Token ids that engines have produced so far.
        has_begun: Whether an engine got any of it. From then on its prompt is charged.
        request_ids: The engine requests that it became.
    """

    def __init__(self, turn: "Turn", prompt_tokens: int, max_tokens: tuple[int, ...]) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.completion_tokens = 0
        self.has_begun = False
        self.is_started = False
        self.request_ids: set[str] = set()
        self._turn: Turn | None = turn

    @property
    def meter(self) -> "RequestMeter":
        """The request that it belongs to. Not to be asked after `end`."""
        assert self._turn is not None, "a generation has not ended"
        return self._turn.meter

    async def admit(self) -> int | None:
        """Waits for the ledger's consent; returns what each completion is to be cut to.

        Raises:
            GracefulHTTPError: It may not begin. `RequestMeter.failure` says it better.
        """
        assert self._turn is not None, "admit comes before end"
        return await self._turn.reserve()

    def end(self) -> None:
        """Says that nothing more will be produced. May be called again."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.end_one()


class Turn:
    """Generations that begin together: one reservation."""

    def __init__(self, meter: "RequestMeter", requests: int) -> None:
        self.meter = meter
        self.generations: list[Generation] = []
        self._requests = requests
        self._lease = LeaseId(uuid.uuid4().hex)
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
            self._reserving = asyncio.create_task(self._reserve(), name="reserve")
        return await asyncio.shield(self._reserving)

    async def _reserve(self) -> int | None:
        meter = self.meter
        ask = Reserve(
            self._lease,
            meter.tenant,
            meter.key,
            meter.model,
            requests=self._requests,
            prompt_tokens=sum(g.prompt_tokens for g in self.generations),
            max_tokens=tuple(n for g in self.generations for n in g.max_tokens),
            is_max_tokens_given=meter.is_max_tokens_given,
        )
        try:
            answer = await meter.ledger.reserve(ask, self.usage)
        except OverloadedError as error:
            raise meter.fail(
                ApiError(503, error.message, retry_after_s=error.retry_after_s)
            ) from error
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


class RequestMeter:
    """One HTTP request: whose it is, what it may take, and what came of it.

    Args:
        ledger: Grants and settles.
        tenant: Who is charged.
        key: With which key; empty where there are none.
        timeout_s: Seconds that the client gives it; None means no bound.
    """

    def __init__(
        self, ledger: LedgerClient, tenant: TenantId, key: KeyId, timeout_s: float | None
    ) -> None:
        self.ledger = ledger
        self.tenant = tenant
        self.key = key
        self.timeout_s = timeout_s
        self.deadline_s = (
            None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        )
        """By the event loop's clock."""
        self.model = ModelName("")
        """The base model; empty until the body is read."""
        self.is_max_tokens_given = False
        self.standing: Standing | None = None
        """How the ledger says things stand; None until it was asked."""
        self.is_refused = False
        """Whether the platform would not serve it: what no engine had is not charged then."""
        self.failure: ApiError | None = None
        """Why, where this gateway knows it better than the front end can say."""
        self._turns: list[Turn] = []

    def plan(self, prompt_tokens: int, max_tokens: tuple[int, ...]) -> Generation:
        """Adds a generation. Nothing is reserved until the first one is admitted."""
        if not self._turns or not self._turns[-1].is_open:
            self._turns.append(Turn(self, requests=0 if self._turns else 1))
        return self._turns[-1].add(prompt_tokens, max_tokens)

    def fail(self, error: ApiError) -> GracefulHTTPError:
        """Notes why it is refused; returns what vLLM's front end is to be told."""
        self.is_refused = True
        self.failure = self.failure or error
        return GracefulHTTPError(error.message, HTTPStatus(error.status))

    async def look(self) -> None:
        """Asks how things stand where nothing was reserved."""
        if self.standing is None:
            self.standing = await self.ledger.look(self.tenant, self.key, self.model)

    def close(self) -> None:
        """The answer is complete: what was planned and never began will not begin any more."""
        for turn in self._turns:
            for generation in turn.generations:
                if not generation.is_started:
                    generation.end()


current_meter: ContextVar[RequestMeter | None] = ContextVar("current_meter", default=None)
"""The HTTP request that the present task works for."""
current_generation: ContextVar[Generation | None] = ContextVar("current_generation", default=None)
"""The call of the engine client that the present task works for."""
