"""A request as an engine without weights answers it: with its own prompt, over and over."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.outputs import LogprobsLists

from deployments.echo_cache import prefill_stats

_IMPOSSIBLE = -100.0
"""A log-probability next to none."""


@dataclass
class EchoRequest:
    """What is to be said, and how far it is."""

    request: EngineCoreRequest
    echo: list[int]
    """Tokens to say, again and again."""
    limit: int
    """How many in all."""
    stops_at: int | None = None
    """The token that ends it, when it reaches its limit."""
    said: int = 0
    uncomputed: int = 0
    """Tokens of prompt and answer so far that are to be computed before it says more."""
    cached_tokens: int | None = None
    """Of its prompt, if there is a cache; None once that is told, or when it began elsewhere."""
    events: list[EngineCoreEvent] | None = None
    """When it came and when it began; None once that is told."""

    def note_begun(self) -> None:
        """It has got its place in the batch, perhaps once more."""
        if self.events is not None:
            self.events.append(EngineCoreEvent.new_event(EngineCoreEventType.SCHEDULED))

    def say(self, n_tokens: int) -> EngineCoreOutput:
        """Returns the next `n_tokens` tokens, fewer at the end."""
        end = min(self.said + n_tokens, self.limit)
        tokens = [self.echo[i % len(self.echo)] for i in range(self.said, end)]
        self.said = end
        done = FinishReason.LENGTH if self.stops_at is None else FinishReason.STOP
        cached, self.cached_tokens = self.cached_tokens, None
        events, self.events = self.events, None
        n_prompt = len(self.request.prompt_token_ids or ())
        return EngineCoreOutput(
            self.request.request_id,
            tokens,
            self._logprobs(tokens),
            finish_reason=done if end >= self.limit else None,
            stop_reason=self.stops_at if end >= self.limit else None,
            events=events,
            prefill_stats=None if cached is None else prefill_stats(n_prompt, cached),
        )

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far."""
        turns, rest = divmod(self.said, len(self.echo))
        answer = self.echo * turns + self.echo[:rest]
        return [*(self.request.prompt_token_ids or ()), *answer]

    @property
    def held_tokens(self) -> int:
        """Tokens of it in the KV cache."""
        return len(self.request.prompt_token_ids or ()) + self.said

    def _logprobs(self, tokens: list[int]) -> LogprobsLists | None:
        """Certainty: the token said has probability 1, the first ids stand in for others."""
        params = self.request.sampling_params
        if params is None or params.logprobs is None:
            return None
        n_others = max(0, params.logprobs)
        others = range(n_others + 1)
        ids = [[token, *[i for i in others if i != token][:n_others]] for token in tokens]
        logprobs = [[0.0] + [_IMPOSSIBLE] * n_others] * len(tokens)
        return LogprobsLists(
            np.array(ids, dtype=np.int32).reshape(len(tokens), n_others + 1),
            np.array(logprobs, dtype=np.float32).reshape(len(tokens), n_others + 1),
            np.ones(len(tokens), dtype=np.int32),
        )


def prepare(
    request: EngineCoreRequest, params: SamplingParams, never_said: Collection[int | None]
) -> EchoRequest:
    """Plans an answer until `max_tokens` or one of the request's stop tokens.

    Args:
        request: What came.
        params: Its own.
        never_said: Tokens that would end it for the front end.
    """
    prompt = request.prompt_token_ids or []
    echo = [token for token in prompt if token not in never_said] or [0]
    limit = params.max_tokens or 16
    stops = set(params.stop_token_ids or ())
    for i in range(max(params.min_tokens - 1, 0), min(limit, params.min_tokens + len(echo))):
        if echo[i % len(echo)] in stops:
            return EchoRequest(request, echo, i + 1, echo[i % len(echo)])
    return EchoRequest(request, echo, limit)
