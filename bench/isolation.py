"""What a tenant within its share waits for its first token beside floods: a simulation.

    python -m bench.isolation            six times the scene of `bench.fairness --only isolation`
    python -m bench.isolation --quick    twice

One engine of `bench.sim_engine` with a batch of 20, a window of 24, places that are yielded, and a
prefix cache that finds what yielded; messages take no time. So what is left is the engine's own: a
step that has begun is not broken off. Steps compute prompts as `policy.prompt_chunks` says, by the
chunk that is allowed while several tenants are there. Arrivals are moved by up to 3 s; seeded.

With "own steps" a prompt that took a place is computed in a step in which all others wait; the
platform does that wherever a chunk is set.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.fair_checks import LIGHT, LONG_S, LOUD, WARM_S, flow, vary
from bench.fair_platform import BATCH, SPARE
from bench.report import Figure, describe_run, print_figures, print_table
from bench.sim_engine import EngineModel, Job, SimEngine, SimRequest
from bench.sim_metrics import list_ttft_s
from bench.simulation import Platform, Run, Simulation
from bench.workloads import merge
from serve_app.messages import TicketId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_options import MovingAverage
from serve_app.policy.prompt_chunks import OwnSteps, Prompt, plan_prompts

_MODEL = EngineModel(max_running=BATCH, kv_tokens=1 << 30)
_CHUNKS: tuple[int | None, ...] = (None, 128, 64, 32, 16)
_CHUNKS_OWN: tuple[int | None, ...] = (None, 64, 32)
_BLOCK = 16
_SHIFT_S = 3.0


class ChunkingEngine(SimEngine):
    """An engine that computes prompts in parts."""

    def __init__(self, model: EngineModel, chunk: int | None, *, has_own_steps: bool) -> None:
        super().__init__("0", model)
        self._chunk = chunk
        self._own_steps = OwnSteps() if has_own_steps else None
        self._uncomputed: dict[TicketId, int] = {}
        self._idle: set[TicketId] = set()
        """Those that wait while another has a step of its own."""

    def begin_step(self) -> float | None:
        """Starts what fits and computes what the chunk allows."""
        before = set(self.running)
        if super().begin_step() is None:
            return None
        self._uncomputed = {t: n for t, n in self._uncomputed.items() if t in self.running}
        for ticket in self.running.keys() - before:
            job = self.running[ticket]
            # What yielded finds its blocks again, all but the last.
            self._uncomputed[ticket] = _BLOCK if job.produced else job.request.prompt_tokens
        express = {t: n for t, n in self._uncomputed.items() if self.turns.is_express(t)}
        self._idle = set()
        if self._own_steps is not None and self._own_steps.give(len(express), self._chunk or 1):
            self._idle = self.running.keys() - express.keys()
            self._uncomputed = {t: n for t, n in self._uncomputed.items() if t not in express}
            n_tokens = sum(express.values())
            return self.model.time_step(len(express), n_tokens, n_tokens)
        prompts = [Prompt(n, self.turns.is_express(t)) for t, n in self._uncomputed.items()]
        parts = plan_prompts(prompts, self._chunk if self.turns.n_tenants > 1 else None)
        for ticket, part in zip(list(self._uncomputed), parts, strict=True):
            self._uncomputed[ticket] -= part
        self._uncomputed = {t: n for t, n in self._uncomputed.items() if n}
        return self.model.time_step(len(self.running), self.kv_tokens, sum(parts))

    def end_step(self, now_s: float) -> list[Job]:
        """Gives those a token whose prompt is computed."""
        silent = {t: self.running.pop(t) for t in self._uncomputed.keys() | self._idle}
        ended = super().end_step(now_s)
        self.running |= silent
        return ended


def simulate(
    sources: Sequence[Sequence[SimRequest]], chunk: int | None, *, has_own_steps: bool
) -> Run:
    """Plays the scene once."""
    platform = Platform(_MODEL, window=BATCH + SPARE, preempts=True)
    simulation = Simulation(Vtc(None, MovingAverage()), merge(sources), platform)
    simulation.engines = [ChunkingEngine(_MODEL, chunk, has_own_steps=has_own_steps)]
    return simulation.run(LONG_S)


def _move(requests: Sequence[SimRequest], rng: random.Random) -> list[SimRequest]:
    moved = (replace(r, arrival_s=r.arrival_s + rng.uniform(0, _SHIFT_S)) for r in requests)
    return sorted(moved, key=lambda request: request.arrival_s)


def _measure(
    chunk: int | None, seeds: range, *, beside: bool, has_own_steps: bool = False
) -> tuple[list[float], int]:
    waits_s: list[float] = []
    n_tokens = 0
    for seed in seeds:
        rng = random.Random(seed)
        sources = [_move(flow(LIGHT, 0.15, until_s=LONG_S), rng)]
        if beside:
            sources += [_move(vary(flow(each, 2, until_s=LONG_S)), rng) for each in LOUD]
        run = simulate(sources, chunk, has_own_steps=has_own_steps)
        waits_s += list(list_ttft_s(run, [LIGHT], LONG_S - 20.0, WARM_S))
        n_tokens += sum(job.produced for job in run.jobs)
    return waits_s, n_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="First tokens of a light tenant beside floods.")
    parser.add_argument("--quick", action="store_true", help="fewer times")
    options = parser.parse_args()
    seeds = range(2 if options.quick else 6)
    alone_s, _ = _measure(None, seeds, beside=False)
    rows, figures = [_show("alone", alone_s, alone_s, "")], {}
    most = 0
    cases = [(chunk, False) for chunk in _CHUNKS] + [(chunk, True) for chunk in _CHUNKS_OWN]
    for chunk, own in cases:
        beside_s, n_tokens = _measure(chunk, seeds, beside=True, has_own_steps=own)
        most = most or n_tokens
        name = "whole prompts" if chunk is None else f"chunk {chunk}"
        name += ", own steps" if own else ""
        rows.append(_show(name, beside_s, alone_s, f"{n_tokens / most:.3f}"))
        ratio = float(np.percentile(beside_s, 90) / np.percentile(alone_s, 90))
        figures[f"ttft_p90_over_alone, {name}"] = Figure(ratio, "<= 1.2")
    print(describe_run(f"python -m bench.isolation{' --quick' if options.quick else ''}"))
    head = ["", "TTFT p50, s", "p90, s", "p90 over alone", "tokens"]
    print_table("A tenant within its share beside three floods", head, rows)
    print_figures("isolation", figures, is_quick=options.quick)


def _show(name: str, waits_s: list[float], alone_s: list[float], tokens: str) -> list[str]:
    p50, p90 = np.percentile(waits_s, (50, 90))
    return [name, f"{p50:.3f}", f"{p90:.3f}", f"{p90 / np.percentile(alone_s, 90):.2f}", tokens]


if __name__ == "__main__":
    main()
