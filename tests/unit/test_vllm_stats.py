"""vLLM's own metrics, made of what its core says."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.metrics.stats import IterationStats, PrefillStats, SchedulerStats

from deployments import vllm_stats
from deployments.vllm_stats import VllmStats


class FakeLogger:
    """Keeps what it is to record."""

    def __init__(self, config: Any, engines: list[int]) -> None:
        self.seen: list[tuple[SchedulerStats | None, IterationStats]] = []

    def log_engine_initialized(self) -> None:
        pass

    def record(
        self, stats: SchedulerStats | None, iteration: IterationStats, engine_idx: int
    ) -> None:
        self.seen.append((stats, iteration))


@pytest.fixture
def stats(monkeypatch: pytest.MonkeyPatch) -> VllmStats:
    monkeypatch.setattr(vllm_stats, "PrometheusStatLogger", FakeLogger)
    return VllmStats(SimpleNamespace())  # type: ignore[arg-type]  # the fake wants nothing of it


def make_request(name: str) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=7),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def make_prefill() -> PrefillStats:
    prefill = PrefillStats()
    prefill.set(num_prompt_tokens=3, num_local_cached_tokens=2, num_external_cached_tokens=0)
    return prefill


def event(kind: EngineCoreEventType, at_s: float) -> EngineCoreEvent:
    return EngineCoreEvent.new_event(kind, at_s)


def test_a_request_is_counted_from_its_first_token_to_its_end(stats: VllmStats) -> None:
    stats.begin(make_request("a"))
    first = EngineCoreOutput("a", [5], prefill_stats=make_prefill())
    first.events = [
        event(EngineCoreEventType.QUEUED, 10.0),
        event(EngineCoreEventType.SCHEDULED, 11.0),
    ]
    stats.take(EngineCoreOutputs(outputs=[first], timestamp=12.0))
    preempted = EngineCoreOutput("a", [6])
    preempted.events = [event(EngineCoreEventType.PREEMPTED, 13.0)]
    stats.take(EngineCoreOutputs(outputs=[preempted], timestamp=14.0))
    last = EngineCoreOutput("a", [7], finish_reason=FinishReason.LENGTH)
    stats.take(EngineCoreOutputs(outputs=[last], timestamp=15.0))

    (_, one), (_, two), (_, three) = stats._logger.seen  # type: ignore[attr-defined]  # the fake
    assert (one.num_generation_tokens, one.prompt_token_stats.cached_tokens) == (1, 2)
    assert len(one.time_to_first_tokens_iter) == 1
    assert (two.inter_token_latencies_iter, two.num_preempted_reqs) == ([2.0], 1)
    (ended,) = three.finished_requests
    assert (ended.num_prompt_tokens, ended.num_generation_tokens, ended.max_tokens_param) == (
        3,
        3,
        7,
    )
    assert (ended.queued_time, ended.prefill_time, ended.decode_time) == (1.0, 1.0, 3.0)
    assert stats._requests == {}


def test_gateways_are_not_sent_what_only_metrics_need(stats: VllmStats) -> None:
    outputs = EngineCoreOutputs(scheduler_stats=SchedulerStats(num_running_reqs=4))
    stats.take(outputs)
    assert outputs.scheduler_stats is None
    (scheduler, _) = stats._logger.seen[0]  # type: ignore[attr-defined]  # the fake
    assert scheduler.num_running_reqs == 4


def test_aborted_and_unknown_requests_are_left_in_peace(stats: VllmStats) -> None:
    stats.begin(make_request("a"))
    stats.forget("a")
    stats.forget("never")
    stats.take(EngineCoreOutputs(outputs=[EngineCoreOutput("a", [5])]))
    assert stats._logger.seen[0][1].num_generation_tokens == 0  # type: ignore[attr-defined]
