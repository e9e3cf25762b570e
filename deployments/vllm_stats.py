"""vLLM's own metrics of an engine, under vLLM's names.

vLLM makes them in its API server, from what its core says of each step. Here that part is in the
gateways and cut into as many pieces as there are gateways; so the engine makes them, from the same
messages, on the thread that sends them. `vllm.v1.metrics` counts, names and registers
(vLLM 0.32); only what its output processor would keep of each request is kept here.

Two of vLLM's names mean a little less than in its own server: times begin when a request comes to
the engine, not to the API, and a step with requests of several gateways is one iteration for each.

Imports vLLM: import it lazily, after the process's environment is set.
"""

import time
from dataclasses import dataclass

from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import IterationStats, LoRARequestStates, RequestStateStats


@dataclass(slots=True)
class _Request:
    stats: RequestStateStats
    prompt_tokens: int
    max_tokens: int | None
    cached_tokens: int = 0
    is_prefilling: bool = True


class VllmStats:
    """Counts one engine's steps in the process's registry. One thread's.

    Args:
        config: The engine's.
    """

    def __init__(self, config: VllmConfig) -> None:
        self._logger = PrometheusStatLogger(config, [0])
        self._logger.log_engine_initialized()  # type: ignore[no-untyped-call]  # vLLM's
        self._requests: dict[str, _Request] = {}
        # Off: which adapters run would be a label's value, and there are thousands.
        self._lora = LoRARequestStates(log_stats=False)

    def begin(self, request: EngineCoreRequest) -> None:
        """A request has come."""
        params = request.sampling_params
        self._requests[request.request_id] = _Request(
            RequestStateStats(arrival_time=time.time()),
            len(request.prompt_token_ids or ()),
            None if params is None else params.max_tokens,
        )

    def forget(self, request_id: str) -> None:
        """A request was aborted."""
        self._requests.pop(request_id, None)

    def take(self, outputs: EngineCoreOutputs) -> None:
        """Counts a message of the core, and keeps from it what gateways have no use for."""
        stats, outputs.scheduler_stats = outputs.scheduler_stats, None
        iteration = IterationStats()  # type: ignore[no-untyped-call]  # vLLM's
        for output in outputs.outputs:
            request = self._requests.get(output.request_id)
            if request is not None:
                self._count(output, request, outputs.timestamp, iteration)
        self._logger.record(stats, iteration, engine_idx=0)

    def _count(
        self,
        output: EngineCoreOutput,
        request: _Request,
        timestamp_s: float,
        iteration: IterationStats,
    ) -> None:
        if output.prefill_stats is not None:
            request.cached_tokens = output.prefill_stats.num_cached_tokens
        iteration.update_from_output(
            output, timestamp_s, request.is_prefilling, request.stats, self._lora, None
        )
        request.is_prefilling = False
        if output.finish_reason is None:
            return
        del self._requests[output.request_id]
        iteration.update_from_finished_request(
            output.finish_reason,
            output.request_id,
            request.prompt_tokens,
            request.max_tokens,
            request.stats,
            request.cached_tokens,
        )
