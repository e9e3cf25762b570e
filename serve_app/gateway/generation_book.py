"""Which generation each engine request belongs to, so that its tokens are counted there."""

from collections.abc import Iterable

from vllm.v1.engine import EngineCoreOutput

from serve_app.gateway.metering import Generation, current_generation

_MEAN_WEIGHT = 0.05
"""Of the latest answer in the average length of answers."""


class GenerationBook:
    """The engine requests that run for one front end."""

    def __init__(self) -> None:
        self.mean_tokens = 0.0
        """Usual length of an answer; 0 until one has ended."""
        self._by_request: dict[str, Generation] = {}

    def add(self, request_id: str) -> None:
        """Enters an engine request for the present task's generation."""
        generation = current_generation.get()
        if generation is not None:
            generation.request_ids.add(request_id)
            self._by_request[request_id] = generation

    def begin(self, request_id: str) -> None:
        """An engine has it."""
        generation = self._by_request.get(request_id)
        if generation is not None:
            generation.has_begun = True

    def count(self, outputs: Iterable[EngineCoreOutput]) -> None:
        """Counts token ids: chunks of text may hold several, or none."""
        for output in outputs:
            generation = self._by_request.get(output.request_id)
            if generation is not None:
                generation.has_begun = True
                generation.completion_tokens += len(output.new_token_ids)

    def note_failure(self, request_id: str) -> None:
        """The platform ends it. If no engine had any of its HTTP request, nothing is charged."""
        generation = self._by_request.get(request_id)
        if generation is not None and not generation.has_begun:
            generation.meter.is_refused = True

    def close(self, generation: Generation) -> None:
        """Nothing more will come for a generation."""
        for request_id in generation.request_ids:
            self._by_request.pop(request_id, None)
        if generation.completion_tokens:
            mean = self.mean_tokens or generation.completion_tokens
            self.mean_tokens = mean + _MEAN_WEIGHT * (generation.completion_tokens - mean)
        generation.end()
