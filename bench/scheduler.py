"""What fair turns cost an engine's step: vLLM's scheduler with and without them.

    python -m bench.scheduler            all rounds
    python -m bench.scheduler --quick    a fifth of the steps

Plans steps for a model that is not there: the schedulers are real, the tokens are made up. Both
plan the same load in turn, a round each. Times are of this thread on its processor, per step, and
are to be seen beside a step of a model, which takes 5 ms at best.
"""

import argparse
import gc
import os
import random
import sys
import time
from dataclasses import dataclass
from typing import Any

from bench.report import Figure, Spread, describe_run, print_figures, print_table, say
from serve_app.embedded_model import prepare_embedded_model

_BLOCK_TOKENS = 16
_TENANTS = 16
_SYNCHRONISE_EVERY = 10
"""Steps between two words from the router; ten a second, at steps of 10 ms."""


@dataclass(frozen=True)
class Case:
    """One measured situation."""

    name: str
    seats: int
    held: int
    """Requests that the engine has, running and waiting."""
    blocks: int


CASES = (
    Case("256 run", 256, 256, 20_000),
    Case("256 run, 4 wait", 256, 260, 20_000),
    Case("space for half of 256", 256, 260, 1_100),
)


class Load:
    """One scheduler that always has the same number of requests."""

    def __init__(self, case: Case, seed: int, *, is_fair: bool) -> None:
        self._rng = random.Random(seed)
        self._case = case
        self._counters = dict.fromkeys((f"tenant-{i:02}" for i in range(_TENANTS)), 0)
        self._n_sent = 0
        self.scheduler = make_scheduler(case, is_fair=is_fair)
        self._is_fair = is_fair

    def measure(self, steps: int) -> float:
        """Returns the microseconds that a step takes."""
        self._fill()
        for _ in range(100):
            self._step()
        gc.collect()
        gc.freeze()  # As the engine does: else a collection walks through all of vLLM.
        took_ns = sum(self._step() for _ in range(steps))
        return took_ns / steps / 1000

    def _step(self) -> int:
        from vllm.v1.outputs import ModelRunnerOutput

        if self._is_fair and self.scheduler.current_step % _SYNCHRONISE_EVERY == 0:
            self.scheduler.tell(dict(self._counters))
        started_ns = time.thread_time_ns()
        plan = self.scheduler.schedule()
        took_ns = time.thread_time_ns() - started_ns
        names = list(plan.num_scheduled_tokens)
        requests = self.scheduler.requests
        said = ModelRunnerOutput(
            names,
            {name: i for i, name in enumerate(names)},
            [[] if requests[name].is_prefill_chunk else [7] for name in names],
        )
        started_ns = time.thread_time_ns()
        self.scheduler.update_from_output(plan, said)
        took_ns += time.thread_time_ns() - started_ns
        return took_ns + self._fill()

    def _fill(self) -> int:
        took_ns = 0
        while len(self.scheduler.requests) < self._case.held:
            request, standing = self._make_request()
            started_ns = time.thread_time_ns()
            if self._is_fair:
                self.scheduler.introduce(request.request_id, standing)
            self.scheduler.add_request(request)
            took_ns += time.thread_time_ns() - started_ns
        return took_ns

    def _make_request(self) -> tuple[Any, Any]:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        from serve_app.messages import Standing
        from serve_app.names import TenantId

        self._n_sent += 1
        tenant = self._rng.choice(sorted(self._counters))
        length = self._rng.randrange(32, 96)
        charged = (64 + 2 * length) * 1_000_000
        self._counters[tenant] += charged
        params = SamplingParams(max_tokens=length, ignore_eos=True)
        request = Request(f"{self._n_sent:08}", [3] * 64, params, None)
        return request, Standing(TenantId(tenant), 0, self._counters[tenant], charged)


def make_scheduler(case: Case, *, is_fair: bool) -> Any:
    """Returns a scheduler for a model that is not there."""
    import torch
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from deployments.fair_scheduler import FairScheduler
    from deployments.vllm_core import vllm_config_of

    args = {
        "max_model_len": 512,
        "max_num_seqs": case.seats,
        "max_num_batched_tokens": 2048,
        "block_size": _BLOCK_TOKENS,
        "enable_prefix_caching": False,
        "enforce_eager": True,
    }
    config = vllm_config_of(args, str(prepare_embedded_model()), "model", on_cpu=True)
    config.cache_config.num_gpu_blocks = case.blocks
    spec = FullAttentionSpec(
        block_size=_BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    kv_cache = KVCacheConfig(
        num_blocks=case.blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    chosen = FairScheduler if is_fair else AsyncScheduler
    return chosen(
        vllm_config=config,
        kv_cache_config=kv_cache,
        structured_output_manager=StructuredOutputManager(config),
        block_size=_BLOCK_TOKENS,
    )


def main() -> None:
    """Measures, prints."""
    parser = argparse.ArgumentParser(description="What fair turns cost an engine's step.")
    parser.add_argument("--quick", action="store_true", help="a fifth of the steps")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(sys.argv[1:])
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    steps, rounds = (100, 3) if args.quick else (500, 5)
    figures: dict[str, Figure] = {}
    rows = []
    for case in CASES:
        taken: dict[bool, list[float]] = {False: [], True: []}
        for n in range(rounds):
            for is_fair in (False, True) if n % 2 == 0 else (True, False):
                load = Load(case, args.seed + n, is_fair=is_fair)
                taken[is_fair].append(load.measure(steps))
            say(f"{case.name}: round {n + 1} of {rounds}")
        added = Spread.of(b - a for a, b in zip(taken[False], taken[True], strict=True))
        figures[f"added_us_per_step, {case.name}"] = Figure(added.mid, "<= 50")
        columns = (Spread.of(taken[False]), Spread.of(taken[True]), added)
        rows.append([case.name, *(column.text(0) for column in columns)])
    print(describe_run(f"python -m bench.scheduler{' --quick' if args.quick else ''}"))
    print_table("µs a step", ["case", "vLLM's", "with fair turns", "added"], rows)
    print_figures("scheduler", figures, is_quick=args.quick)


if __name__ == "__main__":
    main()
