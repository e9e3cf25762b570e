"""What makes of engines' steps what a front end hears: vLLM's, that counts and traces our way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput, RequestState
from vllm.v1.metrics.stats import IterationStats, RequestStateStats

from serve_app.gateway.generation_book import GenerationBook


class CountingOutputProcessor(OutputProcessor):
    """VLLM's, whose book has counted a step's tokens before anyone hears of them.

    Only then is known which ones count: what follows a stop string in the same step is dropped from
    the output, and what comes for a request that has ended is ignored.
    """

    book: GenerationBook

    def process_outputs(
        self, engine_core_outputs: list[EngineCoreOutput], *rest: Any, **options: Any
    ) -> OutputProcessorOutput:
        """Makes texts of a step and hands them to who waits for them; then counts its tokens."""
        wanted = [o for o in engine_core_outputs if self.has_request(o.request_id)]
        processed = super().process_outputs(engine_core_outputs, *rest, **options)
        self.book.count(wanted)
        return processed


@dataclass
class _TracedStats(RequestStateStats):
    """What vLLM measures of a request, and whose child its span is to be."""

    trace_headers: Mapping[str, str] = field(default_factory=dict)


class TracingOutputProcessor(CountingOutputProcessor):
    """The same where requests are traced: vLLM measures for its span those that are sampled.

    Only their headers say anything of a trace (`RequestTrace.headers`). Of most tokens it measures
    two numbers: the rest of what vLLM would keep of each is for its metrics, which engines make.
    """

    def add_request(self, request: EngineCoreRequest, *rest: Any, **options: Any) -> None:
        """Takes a request; begins to measure it where it is sampled."""
        super().add_request(request, *rest, **options)
        state = self.request_states.get(request.request_id)
        if request.trace_headers and state is not None:
            arrived_s = request.arrival_time
            state.stats = _TracedStats(arrival_time=arrived_s, trace_headers=request.trace_headers)

    def _update_stats_from_output(
        self,
        req_state: RequestState,
        engine_core_output: EngineCoreOutput,
        engine_core_timestamp: float | None,
        iteration_stats: IterationStats | None,
    ) -> None:
        stats = req_state.stats
        if stats is None or engine_core_timestamp is None:
            return
        if req_state.is_prefilling or engine_core_output.events:
            fresh = IterationStats()  # type: ignore[no-untyped-call]  # vLLM's
            super()._update_stats_from_output(
                req_state, engine_core_output, engine_core_timestamp, fresh
            )
        else:
            stats.num_generation_tokens += len(engine_core_output.new_token_ids)
            stats.last_token_ts = engine_core_timestamp

    def do_tracing(
        self,
        engine_core_output: EngineCoreOutput,
        req_state: RequestState,
        iteration_stats: IterationStats | None,
    ) -> None:
        """Makes vLLM's span of a request that has ended, where it was measured."""
        if isinstance(req_state.stats, _TracedStats):
            engine_core_output.trace_headers = req_state.stats.trace_headers
            now = IterationStats()  # type: ignore[no-untyped-call]  # vLLM's
            super().do_tracing(engine_core_output, req_state, now)
