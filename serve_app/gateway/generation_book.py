"""Which generation each engine request belongs to, so that its tokens are counted there."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from vllm.v1.engine import EngineCoreOutput

from serve_app.gateway.error_body import ApiError
from serve_app.gateway.meter import Generation

_MEAN_WEIGHT = 0.05
"""Of the latest answer in the average length of answers."""


@dataclass
class _Entry:
    generation: Generation
    completion_tokens: int = 0
    last_s: float = 0.0
    """When its last token came, by the monotonic clock; 0 before the first."""

    def measure(self, n_tokens: int, now_s: float) -> None:
        """Measures the time since its last token; of several at once, each took its part."""
        series = self.generation.meter.series
        if self.last_s and series is not None:
            series.inter_token.observe((now_s - self.last_s) / n_tokens, n_tokens)
        self.last_s = now_s


class GenerationBook:
    """The engine requests that run for one front end, until each has ended or was aborted."""

    def __init__(self) -> None:
        self.mean_tokens = 0.0
        """Usual length of an answer; 0 until one has ended."""
        self._entries: dict[str, _Entry] = {}

    def add(self, request_id: str, generation: Generation) -> None:
        """Enters an engine request of a generation."""
        generation.request_ids.append(request_id)
        self._entries[request_id] = _Entry(generation)

    def begin(self, request_id: str) -> None:
        """An engine has it."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.generation.has_begun = True

    def count(self, outputs: Iterable[EngineCoreOutput]) -> None:
        """Counts the token ids of a step: chunks of text may hold several, or none."""
        now_s = time.monotonic()
        for output in outputs:
            entry = self._entries.get(output.request_id)
            if entry is None:
                continue
            entry.generation.take(output)
            entry.completion_tokens += len(output.new_token_ids)
            if output.new_token_ids:
                entry.measure(len(output.new_token_ids), now_s)
            if output.finished:
                self.drop((output.request_id,))

    def note_failure(self, request_id: str, error: Exception) -> Exception:
        """The platform ends it. If no engine had any of its HTTP request, nothing is charged.

        Returns:
            What vLLM's front end is to be told: it would hide what an `ApiError` says.
        """
        entry = self._entries.get(request_id)
        if entry is None:
            return error
        meter, has_begun = entry.generation.meter, entry.generation.has_begun
        if not isinstance(error, ApiError):
            meter.is_refused |= not has_begun
            return error
        was_refused = meter.is_refused
        told = meter.fail(error)
        if has_begun and error.status == HTTPStatus.SERVICE_UNAVAILABLE:
            meter.is_refused = was_refused  # One of several found no room; others were served.
        return told

    def drop(self, request_ids: Iterable[str]) -> None:
        """Nothing more is wanted of these."""
        for request_id in request_ids:
            entry = self._entries.pop(request_id, None)
            if entry is not None:
                self._learn(entry.completion_tokens)

    def _learn(self, completion_tokens: int) -> None:
        if completion_tokens:
            mean = self.mean_tokens or completion_tokens
            self.mean_tokens = mean + _MEAN_WEIGHT * (completion_tokens - mean)
