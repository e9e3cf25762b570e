"""Compare our scaling of engines with Ray Serve's: first tokens in time, and engine-seconds.

Simulated: a step, a ramp and a day, with engines that take 30 s and 120 s to start, each policy at
several settings of what it aims at. A setting that nobody would choose is no rival: what counts is
what Serve's best settings cost for as many first tokens in time, in a straight line between two.

Short traces are means of several seeds: one alone may have an engine left over from its first
minutes when the step comes, which is luck.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from bench.report import Figure, print_figures, say
from bench.scale_policies import Fixed, Ours, ServeRequests
from bench.scale_sim import Day, Outcome, Policy
from bench.scale_traces import TRACES, Trace
from bench.sim_engine import EngineModel
from serve_app.config_scaling import ScalingSettings

_LEAST, _MOST = 1, 16
_TTFT_S = 2.0
_STARTS_S = (30.0, 120.0)
_LOADS = (0.4, 0.5, 0.6, 0.7)
_PER_ENGINE = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0)
"""Requests; 2 is Serve's default. An engine holds about 20."""
_SEEDS = 4
_LONG_S = 10_000.0
"""A trace so long has enough chance in it by itself."""
_DELAYS = {"serve": (30.0, 600.0), "serve-quick": (0.0, 120.0)}
"""Serve's own delays up and down, and such as ours has."""


@dataclass(frozen=True)
class Setting:
    """One policy and what it aims at."""

    policy: str
    aim: float

    def make(self) -> Policy:
        """Returns the policy, new."""
        if self.policy == "ours":
            return Ours(ScalingSettings(load=self.aim, ttft_target_s=_TTFT_S), _LEAST, _MOST)
        up_s, down_s = _DELAYS[self.policy]
        return ServeRequests(self.aim, _LEAST, _MOST, up_s, down_s)


@dataclass(frozen=True)
class Result:
    """What one setting came to on one trace, in the mean of some seeds."""

    trace: str
    start_s: float
    setting: Setting
    seeds: tuple[int, ...]
    attainment: float
    engine_h: float
    ttft_p50_s: float
    ttft_p99_s: float
    timeline: tuple[tuple[float, int, int], ...]


def measure_rps(model: EngineModel) -> float:
    """Returns requests a second that one engine ends when it always has more of them."""
    trace = Trace("full", lambda _: 1.0, 1200.0)
    requests = trace.requests(0, 5.0)
    outcome = Day(requests, model, Fixed(1), 0.0, _TTFT_S).run(trace.duration_s)
    return len(outcome.ttft_s) / trace.duration_s


def simulate(task: tuple[Trace, float, Setting, int, float]) -> Result:
    """Plays one trace under one setting."""
    trace, start_s, setting, seed, rps = task
    requests = trace.requests(seed, rps)
    outcome = Day(requests, EngineModel(), setting.make(), start_s, _TTFT_S).run(trace.duration_s)
    return _result(trace, start_s, setting, seed, outcome)


def _result(trace: Trace, start_s: float, setting: Setting, seed: int, o: Outcome) -> Result:
    return Result(
        trace.name,
        start_s,
        setting,
        (seed,),
        o.attainment(_TTFT_S),
        o.engine_s / 3600,
        o.percentile_s(0.5),
        o.percentile_s(0.99),
        tuple(o.timeline),
    )


def average(results: Sequence[Result]) -> Result:
    """Returns the mean of one setting on one trace under several seeds."""
    first = results[0]
    return replace(
        first,
        seeds=tuple(seed for r in results for seed in r.seeds),
        attainment=fmean(r.attainment for r in results),
        engine_h=fmean(r.engine_h for r in results),
        ttft_p50_s=fmean(r.ttft_p50_s for r in results),
        ttft_p99_s=fmean(r.ttft_p99_s for r in results),
    )


def compare(results: Sequence[Result], rivals: Iterable[str]) -> list[dict[str, float]]:
    """Returns, for each of our settings, what the rivals' best cost for as many in time."""
    frontier = _frontier([r for r in results if r.setting.policy in set(rivals)])
    found = []
    for ours in (r for r in results if r.setting.policy == "ours"):
        cost = _cost_of(ours.attainment, frontier)
        row = {
            "load": ours.setting.aim,
            "in_time": round(ours.attainment, 4),
            "engine_h": round(ours.engine_h, 2),
        }
        if cost is not None:
            row |= {"rival_h": round(cost, 2), "ratio": round(ours.engine_h / cost, 3)}
        found.append(row)
    return found


def _frontier(results: Iterable[Result]) -> list[tuple[float, float]]:
    """Returns attainment and engine-hours of settings that no other is better than in both."""
    best: list[tuple[float, float]] = []
    for r in sorted(results, key=lambda r: (r.engine_h, -r.attainment)):
        if not best or r.attainment > best[-1][0]:
            best.append((r.attainment, r.engine_h))
    return best


def _cost_of(attainment: float, frontier: Sequence[tuple[float, float]]) -> float | None:
    """Returns what an attainment costs, in a straight line between two settings.

    None where none of them reaches it; what is below all of them costs as the cheapest.
    """
    if attainment > frontier[-1][0]:
        return None
    for (low, low_h), (high, high_h) in pairwise(frontier):
        if low <= attainment <= high:
            return low_h + (high_h - low_h) * (attainment - low) / (high - low)
    return frontier[0][1]


def print_results(results: Sequence[Result]) -> None:
    """Prints all settings of one trace, the dearest first, and the comparison."""
    first = results[0]
    print(f"\n{first.trace}, an engine starts in {first.start_s:g} s, seeds {first.seeds}")
    print(f"  {'policy':12} {'aim':>5} {'in time':>8} {'engine-h':>9} {'p50 s':>7} {'p99 s':>8}")
    for r in sorted(results, key=lambda r: (r.setting.policy, r.setting.aim)):
        print(
            f"  {r.setting.policy:12} {r.setting.aim:5g} {r.attainment:8.4f} {r.engine_h:9.2f} "
            f"{r.ttft_p50_s:7.2f} {r.ttft_p99_s:8.2f}"
        )
    for rivals in (("serve",), ("serve", "serve-quick")):
        print(f"  engine-hours over those of {' and '.join(rivals)} at as many in time")
        for row in compare(results, rivals):
            print(
                f"    load {row['load']:<4} in time {row['in_time']:<7} {row['engine_h']:>7} h; "
                f"rival: {row.get('rival_h', 'none')} h, ratio {row.get('ratio', '-')}"
            )
    sys.stdout.flush()


def list_settings(*, is_quick: bool) -> list[Setting]:
    """Returns what is compared."""
    loads = _LOADS[::2] if is_quick else _LOADS
    per_engine = _PER_ENGINE[::2] if is_quick else _PER_ENGINE
    settings = [Setting("ours", load) for load in loads]
    return settings + [Setting(name, aim) for name in _DELAYS for aim in per_engine]


def list_seeds(trace: Trace) -> list[int]:
    """Returns under which seeds a trace is played."""
    return list(range(1, 2 if trace.duration_s > _LONG_S else _SEEDS + 1))


def summarize(results: Sequence[Result]) -> dict[str, Figure]:
    """Returns for each of our settings the part in time, and its cost over that of the rivals."""
    figures: dict[str, Figure] = {}
    for key in sorted({(r.trace, r.start_s) for r in results}):
        group = [r for r in results if (r.trace, r.start_s) == key]
        for rivals, name in ((["serve"], "serve"), (list(_DELAYS), "any")):
            for row in compare(group, rivals):
                stem = f"{key[0]}_{key[1]:g}s_load_{row['load']:g}"
                figures[f"{stem}_in_time"] = Figure(row["in_time"])
                figures[f"{stem}_cost_over_{name}"] = Figure(row.get("ratio"), "<= 0.8")
    return figures


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer settings, and no day")
    parser.add_argument(
        "--seed", type=int, action="append", help="in place of 1 to 4, or 1 for days"
    )
    parser.add_argument(
        "--start", type=float, action="append", help="seconds an engine starts in (30 and 120)"
    )
    parser.add_argument("--only", action="append", choices=[trace.name for trace in TRACES])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--plots", type=Path, help="folder for SVG files")
    parser.add_argument(
        "--live", action="store_true", help="on a real Ray instead: 25 minutes (--quick: nine)"
    )
    parser.add_argument("--trace-seconds", type=float, help="length of each live trace")
    return parser.parse_args(words)


def main() -> None:
    args = parse_arguments(sys.argv[1:])
    if args.live:
        from bench.autoscale_live import run_live

        figures = run_live(is_quick=args.quick, trace_s=args.trace_seconds)
        print_figures("autoscale_live", figures, is_quick=args.quick)
        return
    names = args.only or [t.name for t in TRACES if not (args.quick and t.duration_s > _LONG_S)]
    rps = measure_rps(EngineModel())
    print(f"One engine ends {rps:.2f} requests/s.")
    settings = list_settings(is_quick=args.quick)
    results: list[Result] = []
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        for trace in (trace for trace in TRACES if trace.name in names):
            for start_s in args.start or _STARTS_S:
                seeds = args.seed or list_seeds(trace)
                tasks = [(trace.name, start_s, s, seed, rps) for s in settings for seed in seeds]
                say(f"{trace.name}, an engine starts in {start_s:g} s: {len(tasks)} runs")
                found = pool.map(_simulate_named, tasks, chunksize=1)
                group = [
                    average(found[i : i + len(seeds)]) for i in range(0, len(found), len(seeds))
                ]
                print_results(group)
                results += group
    if args.plots:
        from bench.scale_plot import draw

        print(f"  {draw(results, args.plots)}")
    print_figures("autoscale", summarize(results), is_quick=args.quick)


def _simulate_named(task: tuple[str, float, Setting, int, float]) -> Result:
    """A trace's course is code, which does not travel between processes; its name does."""
    name, *rest = task
    trace = next(trace for trace in TRACES if trace.name == name)
    return simulate((trace, *rest))  # type: ignore[arg-type]  # mypy loses the unpacked types


if __name__ == "__main__":
    main()
