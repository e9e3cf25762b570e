"""Bounds what one step of vLLM's scheduler computes, so that newcomers get their first token soon.

vLLM plans what runs first, and then what waits, until the step's token budget is spent: so one long
prompt may take all tokens of many steps. Budget, threshold and the list of what runs are read anew
in each step (vllm/v1/core/sched/scheduler.py, 0.32); they are changed for one step and put back.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from serve_app.policy.prompt_chunks import OwnSteps


class StepShape:
    """The bounds of one scheduler's steps."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._own_steps = OwnSteps()
        self.prompt_chunk: int | None = None
        """As `prompt_chunk_tokens` of a model's settings."""

    @contextmanager
    def kept(self, express: Sequence[Request], n_tenants: int) -> Iterator[None]:
        """Shapes the step that is planned meanwhile.

        Args:
            express: Requests that took a place and start with this step.
            n_tenants: How many have something in the engine.
        """
        chunk = self.prompt_chunk if n_tenants > 1 and self._may_split() else None
        n_starting = self._count_starting(express)
        if self._own_steps.give(n_starting, chunk):
            with self._others_waiting(n_starting), self._budget_kept(express, chunk):
                yield
        else:
            with self._budget_kept(express, chunk):
                yield

    def _count_starting(self, express: Sequence[Request]) -> int:
        """Returns how many can start: not those whose grammar, say, is not compiled yet."""
        scheduler = self._scheduler
        n_taken = len(scheduler.running) + scheduler.num_waiting_for_streaming_input
        n_ready = sum(not scheduler._is_blocked_waiting_status(r.status) for r in express)
        return min(n_ready, scheduler.max_num_active_reqs - n_taken)

    @contextmanager
    def _others_waiting(self, n_starting: int) -> Iterator[None]:
        """Has the step start so many, which are first in turn, and compute nothing else."""
        scheduler = self._scheduler
        others, most = scheduler.running, scheduler.max_num_active_reqs
        scheduler.running = []
        # Paused sessions count as active, too.
        scheduler.max_num_active_reqs = n_starting + scheduler.num_waiting_for_streaming_input
        try:
            yield
        finally:
            scheduler.running = others + scheduler.running
            scheduler.max_num_active_reqs = most

    @contextmanager
    def _budget_kept(self, express: Sequence[Request], chunk: int | None) -> Iterator[None]:
        """Lets long prompts leave a part of the step to express ones, and keeps the step short."""
        scheduler = self._scheduler
        config = scheduler.scheduler_config
        before = config.long_prefill_token_threshold, scheduler.max_num_scheduled_tokens
        n_prefills = sum(request.is_prefill_chunk for request in scheduler.running)
        n_answers = (len(scheduler.running) - n_prefills) * (1 + scheduler.num_spec_tokens)
        n_prompts = n_prefills + len(express)
        if chunk is not None:
            # What runs is planned first: an express prompt is computed whole if each of the others
            # may be as long.
            longest = max((request.num_tokens for request in express), default=0)
            budget = n_answers + max(longest * n_prompts, chunk)
            scheduler.max_num_scheduled_tokens = min(budget, before[1])
        if express:
            share = max(1, (scheduler.max_num_scheduled_tokens - n_answers) // n_prompts)
            config.long_prefill_token_threshold = min(before[0] or share, share)
        try:
            yield
        finally:
            config.long_prefill_token_threshold, scheduler.max_num_scheduled_tokens = before

    def _may_split(self) -> bool:
        """Whether any prompt can be computed in parts as small as one likes."""
        config = self._scheduler.scheduler_config
        return (
            config.enable_chunked_prefill
            and not config.disable_chunked_mm_input
            and not self._scheduler.need_mamba_block_aligned_split
        )
