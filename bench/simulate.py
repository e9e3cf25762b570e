"""Runs the paper's workloads in full size through every policy, on a model of an engine.

    python -m bench.simulate            all workloads
    python -m bench.simulate --quick    the first two and the arena-like one, three policies
    python -m bench.simulate --plots bench/plots    also draws service by tenant

The policies are those that serve; the engine is `bench.sim_engine`'s model. With `--model FILE`
it is one of your own measurements.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.sim_engine import EngineModel, SimRequest
from bench.sim_metrics import (
    list_ttft_s,
    measure_difference,
    measure_shares,
    measure_throughput,
)
from bench.simulation import Platform, Run, Simulation, measure_capacity
from bench.workloads import REFERENCE_RPS, WORKLOADS, Workload
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_baselines import (
    FirstCome,
    RequestCap,
    RoundRobin,
)
from serve_app.policy.fairness_bound import Capacity, bound_gap
from serve_app.policy.fairness_options import Cost, MovingAverage, NoPrediction, Share
from serve_app.policy.fairness_settings import VtcSettings
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import TurnOrder

_QUICK = ("overload", "overload-multi", "arena-like")
_PLOTTED = ("overload", "on/off less", "weighted")
SERVICE = 256 + 2 * 256
"""Of the request by which capacity is measured."""
TAIL_S = 60.0
"""After the time that is measured, so that what was sent in it may end."""
_BURST = 1000.0
"""Service of one request of the arena-like workload, and somewhat more."""


class TrueLength(NoPrediction):
    """Knows each answer's length, as here `max_tokens` says it. What prediction can reach."""

    def predict(self, request: Waiting) -> int:
        """Returns the length."""
        return request.max_tokens


EXPRESS = "vtc+express"
"""As the platform serves: with prediction, and running requests that yield their places."""
Maker = Callable[[Workload, int, VtcSettings], TurnOrder]


def _shares(workload: Workload) -> dict[TenantId, Share]:
    return {tenant: Share(weight) for tenant, weight in workload.weights.items()}


def _light_first(workload: Workload, settings: VtcSettings) -> Vtc:
    """Serves the light tenants before all others: as soon as any order could, fair or not."""
    others = {r.tenant for r in workload.make(workload.duration_s, random.Random(0), 1.0)}
    shares = {tenant: Share(tier=1) for tenant in others - set(workload.light)}
    return Vtc(replace(settings, floor=0.0), MovingAverage(), shares)


POLICIES: Mapping[str, Maker] = {
    "vtc": lambda w, _, settings: Vtc(settings, shares=_shares(w)),
    "vtc+mean": lambda w, _, settings: Vtc(settings, MovingAverage(), _shares(w)),
    EXPRESS: lambda w, _, settings: Vtc(settings, MovingAverage(), _shares(w)),
    "vtc+burst": lambda w, _, settings: Vtc(
        replace(settings, burst=_BURST), MovingAverage(), _shares(w)
    ),
    "vtc+true": lambda w, _, settings: Vtc(settings, TrueLength(), _shares(w)),
    "light first": lambda w, _, settings: _light_first(w, settings),
    "fcfs": lambda w, _, __: FirstCome(),
    "lcf": lambda w, _, settings: Vtc(replace(settings, lifts=False)),
    "rr": lambda w, _, __: RoundRobin(),
    "rpm": lambda w, n, _: RequestCap(max(round(60 * REFERENCE_RPS / n), 1)),
}


@dataclass(frozen=True)
class Result:
    """One workload under one policy. Differences and throughput are parts of the capacity."""

    d_max: float
    d_avg: float
    d_var: float
    gap_ratio: float
    """Greatest gap divided by its bound."""
    is_within_bound: bool
    throughput: float
    share_error: float
    """Greatest difference of a tenant's share from its weight's part."""
    ttft_mean_s: float
    """Of the tenants within their share; nan where there are none."""
    ttft_p90_s: float
    ttft_p99_s: float
    wall_s: float


def simulate(workload: Workload, policy: str, platform: Platform, seed: int) -> tuple[Result, Run]:
    """Runs one workload under one policy."""
    started_s = time.perf_counter()
    factor = measure_factor(platform)
    requests = workload.make(workload.duration_s + TAIL_S, random.Random(seed), factor)
    order = POLICIES[policy](
        workload,
        len({r.tenant for r in requests}),
        VtcSettings(passing=platform.passing, burst=platform.burst),
    )
    platform = replace(platform, preempts=policy == EXPRESS)
    simulation = Simulation(order, requests, platform, dict(workload.weights))
    run = simulation.run(workload.duration_s + TAIL_S)
    capacity = factor * REFERENCE_RPS * SERVICE
    bound = _bound(requests, platform, run, workload)
    return summarise(run, workload, capacity, bound, time.perf_counter() - started_s), run


def summarise(run: Run, workload: Workload, capacity: float, bound: float, wall_s: float) -> Result:
    """Returns a run's figures.

    Args:
        run: What happened.
        workload: What was sent.
        capacity: Service/s that all engines together can give.
        bound: Of the gap.
        wall_s: How long it took.
    """
    d_max, d_avg, d_var = measure_difference(run, workload.duration_s, workload.weights)
    ttft_s = list_ttft_s(run, workload.light, workload.duration_s)
    return Result(
        d_max / capacity,
        d_avg / capacity,
        d_var / capacity**2,
        run.gap / bound,
        run.gap <= bound,
        measure_throughput(run, workload.duration_s) / capacity,
        _share_error(run, workload),
        *_summarise_ttft(ttft_s),
        wall_s,
    )


def measure_factor(platform: Platform) -> float:
    """Returns how many times the paper's capacity the simulated engines have."""
    if platform.model not in _capacities:
        _capacities[platform.model] = measure_capacity(platform.model, 256, 256) / REFERENCE_RPS
    return platform.engines * _capacities[platform.model]


_capacities: dict[EngineModel, float] = {}


def _bound(
    requests: Sequence[SimRequest], platform: Platform, run: Run, workload: Workload
) -> float:
    kv_tokens = platform.engines * platform.model.kv_tokens
    capacity = Capacity(
        max(r.prompt_tokens for r in requests),
        max(kv_tokens, run.in_flight_tokens),
        run.uncharged_tokens,
    )
    least = min(workload.weights.values(), default=1.0)
    return bound_gap(
        Cost(), capacity, slack=(platform.passing or 0.0) + platform.burst, least_weight=least
    )


def _share_error(run: Run, workload: Workload) -> float:
    weights = [workload.weights.get(tenant, 1.0) for tenant in run.tenants]
    shares = measure_shares(run, workload.duration_s)
    return max(
        abs(shares[tenant] - weight / sum(weights))
        for tenant, weight in zip(run.tenants, weights, strict=True)
    )


def _summarise_ttft(ttft_s: np.typing.NDArray[np.float64]) -> tuple[float, float, float]:
    if not len(ttft_s):
        return float("nan"), float("nan"), float("nan")
    return (
        float(ttft_s.mean()),
        float(np.percentile(ttft_s, 90)),
        float(np.percentile(ttft_s, 99)),
    )


def print_table(workload: Workload, results: Mapping[str, Result]) -> None:
    """Prints the policies of one workload beside the figures to beat."""
    print(f"\n{workload.name}")
    print(
        f"  {'policy':10} {'D max':>7} {'D avg':>7} {'D var':>8} {'gap/2U':>7} {'share±':>7} "
        f"{'thr':>6} {'TTFT':>7} {'p90':>7} {'p99':>7} {'wall':>6}"
    )
    for policy, r in results.items():
        print(
            f"  {policy:10} {r.d_max:7.3f} {r.d_avg:7.3f} {r.d_var:8.5f} {r.gap_ratio:7.3f} "
            f"{r.share_error:7.3f} {r.throughput:6.3f} {r.ttft_mean_s:7.2f} {r.ttft_p90_s:7.2f} "
            f"{r.ttft_p99_s:7.2f} {r.wall_s:5.1f}s"
        )
    for title, figures in (("paper", workload.paper), ("to beat", workload.better)):
        if figures:
            words = ", ".join(f"{name} {value:g}" for name, value in figures.items())
            print(f"  {title:10} {words}")


Figures = dict[str, dict[str, object]]


def judge(
    results: Mapping[str, Mapping[str, Result]], plain: str = "vtc", best: str = "vtc+mean"
) -> Figures:
    """Returns the figures of the last line, each with its target.

    Args:
        results: By workload and policy.
        plain: Policy whose gap must keep its bound.
        best: Policy that all targets are for.

    Throughput is compared only where every order has the same mix to serve: service per second
    depends on the lengths, and a fair order serves another mix than that which was sent.
    """
    figures: Figures = {}
    for workload in WORKLOADS:
        mine = results.get(workload.name)
        if mine is None or not {plain, best, "fcfs"} <= set(mine):
            continue
        ours, fcfs = mine[best], mine["fcfs"]
        for name, most in workload.better.items():
            add_figure(figures, f"{workload.name}: {name}", getattr(ours, name), most=most)
        gap = max(ours.gap_ratio, mine[plain].gap_ratio)
        add_figure(figures, f"{workload.name}: gap over bound", gap, most=1)
        if not workload.is_mixed:
            ratio = ours.throughput / fcfs.throughput
            add_figure(figures, f"{workload.name}: throughput over fcfs", ratio, least=0.99)
        if workload.name == "arena-like":
            _judge_light(figures, ours, fcfs)
    return figures


def _judge_light(figures: Figures, best: Result, fcfs: Result) -> None:
    name = "arena-like: ttft of the light, times lower than fcfs"
    add_figure(figures, f"{name}, mean", fcfs.ttft_mean_s / best.ttft_mean_s, least=26)
    add_figure(figures, f"{name}, p99", fcfs.ttft_p99_s / best.ttft_p99_s, least=20)
    for measure, most in (("d_max", 0.256 / 0.59), ("d_avg", 0.177 / 0.337)):
        ratio = getattr(best, measure) / getattr(fcfs, measure)
        add_figure(figures, f"arena-like: {measure} over that of fcfs", ratio, most=round(most, 3))


def add_figure(
    figures: Figures,
    name: str,
    value: float,
    *,
    most: float | None = None,
    least: float | None = None,
) -> None:
    """Adds one figure, with its target."""
    ok = (most is None or value <= most) and (least is None or value >= least)
    target = f">= {least}" if least is not None else "none" if most is None else f"<= {most}"
    figures[name] = {"value": round(value, 4), "target": target, "ok": ok}


def run_platforms(figures: Figures, platform: Platform, seed: int, names: Sequence[str]) -> None:
    """Runs VTC behind a router that hands over a window, with several engines and gateways."""
    print("\nrouter window 24 an engine, tokens reported every 0.5 s")
    print(
        f"  {'workload':16} {'policy':10} {'engines':>7} {'gateways':>8} {'gap/2U':>7} {'D avg':>7}"
    )
    worst = 0.0
    for workload in WORKLOADS:
        if workload.name not in names:
            continue
        for engines in (1, 3):
            for gateways in (1, 2, 4):
                for policy in ("vtc", "vtc+mean"):
                    here = replace(
                        platform,
                        engines=engines,
                        gateways=gateways,
                        window=24,
                        charge_every_s=0.5,
                    )
                    result, _ = simulate(workload, policy, here, seed)
                    worst = max(worst, result.gap_ratio)
                    print(
                        f"  {workload.name:16} {policy:10} {engines:7} {gateways:8} "
                        f"{result.gap_ratio:7.3f} {result.d_avg:7.3f}",
                        flush=True,
                    )
    add_figure(figures, "1-4 gateways, 1-3 engines: worst gap over bound", worst, most=1)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer workloads and policies")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, help="JSON with measurements of an engine")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--passing", type=float, default=0.0, help="service; see VtcSettings")
    parser.add_argument("--burst", type=float, default=0.0, help="service; see VtcSettings")
    parser.add_argument("--window", type=int, help="requests handed to an engine at a time")
    parser.add_argument("--charge-every", type=float, default=0.0, help="seconds")
    parser.add_argument("--only", action="append", help="name of a workload")
    parser.add_argument("--policy", action="append", choices=list(POLICIES))
    parser.add_argument("--plots", type=Path, help="folder for SVG files")
    return parser.parse_args(words)


def main() -> None:
    args = parse_arguments(sys.argv[1:])
    platform = Platform(
        EngineModel.load(args.model) if args.model else EngineModel(),
        args.engines,
        args.gateways,
        args.passing,
        args.burst,
        args.window,
        args.charge_every,
    )
    names = args.only or (_QUICK if args.quick else [w.name for w in WORKLOADS])
    policies: Sequence[str] = args.policy or (
        ("vtc", "vtc+mean", "fcfs") if args.quick else list(POLICIES)
    )
    results: dict[str, dict[str, Result]] = {}
    for workload in WORKLOADS:
        if workload.name not in names:
            continue
        runs: dict[str, Run] = {}
        results[workload.name] = {}
        for policy in policies:
            results[workload.name][policy], runs[policy] = simulate(
                workload, policy, platform, args.seed
            )
        print_table(workload, results[workload.name])
        sys.stdout.flush()
        if args.plots and workload.name in _PLOTTED:
            from bench.sim_plots import draw

            shown = {name: run for name, run in runs.items() if name in ("fcfs", "vtc+mean")}
            print(f"  {draw(workload, shown, args.plots)}")
    figures = judge(results)
    if not args.only:
        run_platforms(figures, platform, args.seed, _QUICK)
    print(json.dumps({"bench": "simulate", "quick": args.quick, "figures": figures}))


if __name__ == "__main__":
    main()
