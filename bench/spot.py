"""Replays public spot traces: what does availability cost under each placement policy?

    python -m bench.spot --traces FOLDER             ten windows of 24 h a trace; 15 minutes
    python -m bench.spot --traces FOLDER --quick     two windows
    python -m bench.spot --traces FOLDER --plots bench/plots

FOLDER holds one folder a trace, each with a file a zone:
`{"metadata": {"gap_seconds": 300}, "data": [nodes that the zone would give, ...]}`, as SkyServe's
public traces have. The policy's constants were chosen on windows in the first half of AWS1, AWS2
and AWS3; the held-out figures are of their second half and of all of GCP1.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

from bench.report import Figure, Spread, describe_run, print_figures, print_table, say
from bench.spot_plot import draw
from bench.spot_rivals import EvenSpread, OnDemandOnly, SpotHedge
from bench.spot_sim import Outcome, Placement, Purpose, Replay, Setting, choose_offsets, list_offers
from bench.spot_trace import Trace, load_trace
from cluster.policy.fleet import Market, Offer
from cluster.policy.placement import PlacementSettings, SpotPlacement

TRACES = ("AWS1", "AWS2", "AWS3", "GCP1")
GOALS = {120.0: 0.999, 600.0: 0.995}
"""By start-up time, in seconds: what the policy is told, and what its availability must reach."""
NOTICES_S = {"aws": 120.0, "gcp": 30.0}
WHOLE = (0.0, 1.0)
HELD_OUT = {"AWS1": (0.5, 1.0), "AWS2": (0.5, 1.0), "AWS3": (0.5, 1.0), "GCP1": WHOLE}

PARTS = {"whole": dict.fromkeys(TRACES, WHOLE), "held-out": HELD_OUT}

Maker = Callable[[Setting, Sequence[Offer], int], Placement]


def _make_ours(
    setting: Setting, offers: Sequence[Offer], _: int, *, caution: float | None = None
) -> Placement:
    notice_s = min((setting.notices_s.get(offer.cloud, 0.0) for offer in offers), default=0.0)
    settings = PlacementSettings(
        setting.target, setting.start_up_s, GOALS[setting.start_up_s], notice_s=notice_s
    )
    if caution is not None:
        settings = replace(settings, caution=caution)
    return SpotPlacement(settings, offers)


def _make_hedge(setting: Setting, offers: Sequence[Offer], seed: int, *, extra: int) -> Placement:
    return SpotHedge(setting.target, extra, offers, seed)


POLICIES: Mapping[str, Maker] = {
    "on demand": lambda setting, offers, _: OnDemandOnly(setting.target, offers),
    "one zone": lambda setting, offers, seed: EvenSpread(
        setting.target, [offers[seed % len(offers)]]
    ),
    "even spread": lambda setting, offers, _: EvenSpread(setting.target, offers),
    "SpotHedge": partial(_make_hedge, extra=1),
    "Arriero": _make_ours,
}
SWEPT: Mapping[str, Mapping[str, Maker]] = {
    "SpotHedge": {f"SpotHedge +{n}": partial(_make_hedge, extra=n) for n in range(4)},
    "Arriero": {f"Arriero x{c:g}": partial(_make_ours, caution=c) for c in (0.03, 0.1, 0.3, 1.0)},
}
"""The policies over a parameter of each, for `bench.spot_curve`."""
_MAKERS = {**POLICIES, **SWEPT["SpotHedge"], **SWEPT["Arriero"]}


@dataclass(frozen=True)
class Job:
    """One window under one policy."""

    folder: Path
    policy: str
    start_up_s: float
    has_notice: bool
    part: tuple[float, float]
    window: int
    n_windows: int
    paid_s: float = 0.0
    history_s: float = 0.0

    @property
    def cell(self) -> tuple[str, str, float, bool]:
        """What the windows of a line in the table have in common."""
        return (self.folder.name, self.policy, self.start_up_s, self.has_notice)


Results = dict[tuple[str, str, float, bool], list[Outcome]]


def run_job(job: Job) -> Outcome:
    """Runs in a process of its own."""
    trace = _load(job.folder)
    notices_s = NOTICES_S if job.has_notice else {}
    setting = Setting(
        start_up_s=job.start_up_s,
        notices_s=notices_s,
        paid_s=job.paid_s,
        history_s=job.history_s,
    )
    offset_s = choose_offsets(trace, setting, job.n_windows, job.part)[job.window]
    policy = _MAKERS[job.policy](setting, list_offers(trace, setting), job.window)
    return Replay(trace, policy, setting, offset_s).run()


_traces: dict[Path, Trace] = {}


def _load(folder: Path) -> Trace:
    if folder not in _traces:
        _traces[folder] = load_trace(folder)
    return _traces[folder]


def run_jobs(jobs: Sequence[Job], processes: int) -> Results:
    """Runs windows with the policies in turn."""
    results: Results = {}
    with ProcessPoolExecutor(processes) as pool:
        for n, (job, outcome) in enumerate(zip(jobs, pool.map(run_job, jobs), strict=True), 1):
            results.setdefault(job.cell, []).append(outcome)
            if n % 100 == 0:
                say(f"{n} of {len(jobs)} windows")
    return results


def print_results(title: str, results: Results) -> None:
    """Prints a table: mean of the windows, lowest to highest in brackets."""
    rows = []
    for (trace, policy, start_up_s, has_notice), outcomes in results.items():
        available = Spread.of(o.availability for o in outcomes)
        cost = Spread.of(o.cost for o in outcomes)
        rows.append(
            [
                f"{trace}, {start_up_s:g} s, {policy}{' + notice' if has_notice else ''}",
                f"{mean(o.availability for o in outcomes):.4f}",
                f"{available.low:.4f}-{available.high:.4f}",
                f"{mean(o.availability_all for o in outcomes):.4f}",
                f"{mean(o.cost for o in outcomes):.3f}",
                f"{cost.low:.2f}-{cost.high:.2f}",
                f"{mean(o.shortage for o in outcomes):.4f}",
                f"{mean(o.reclaims for o in outcomes):.1f}",
                f"{mean(o.on_demand for o in outcomes):.2f}",
            ]
        )
    print_table(title, _HEAD, rows)


_HEAD = (
    "policy",
    "available",
    "spread",
    "with ramp",
    "cost",
    "spread",
    "late",
    "reclaims",
    "on demand",
)


def print_spent(title: str, results: Results) -> None:
    """Prints what the cost is made of."""
    rows = []
    for (trace, policy, start_up_s, has_notice), outcomes in results.items():
        shares = [mean(o.spent.get(use, 0.0) for o in outcomes) for use in _USES]
        name = f"{trace}, {start_up_s:g} s, {policy}{' + notice' if has_notice else ''}"
        rows.append([name, *(f"{share:.3f}" for share in shares)])
    print_table(title, ["policy", *(f"{market}, {use}" for market, use in _USES)], rows)


_MARKETS: tuple[Market, ...] = ("spot", "on-demand")
_PURPOSES: tuple[Purpose, ...] = ("serving", "spare", "starting")
_USES = tuple(itertools.product(_MARKETS, _PURPOSES))


def judge(results: Results, has_notice: bool, prefix: str) -> dict[str, Figure]:
    """Returns the figures of the last line, each with its target."""
    figures: dict[str, Figure] = {}
    suffix = ", notice" if has_notice else ""
    for start_up_s, goal in GOALS.items():
        ratios, gains = [], []
        for trace in TRACES:
            ours = results[(trace, "Arriero", start_up_s, has_notice)]
            theirs = results[(trace, "SpotHedge", start_up_s, False)]
            name = f"{prefix}{trace}, {start_up_s:g} s{suffix}: "
            available = mean(o.availability for o in ours)
            ratios.append(mean(o.cost for o in ours) / mean(o.cost for o in theirs))
            gains.append(available - mean(o.availability for o in theirs))
            figures[f"{name}availability"] = Figure(available, f">= {goal}")
            figures[f"{name}cost over SpotHedge's"] = Figure(ratios[-1], "<= 1")
        name = f"{prefix}mean, {start_up_s:g} s{suffix}: "
        figures[f"{name}cost over SpotHedge's"] = Figure(mean(ratios), "<= 0.9")
        figures[f"{name}availability above SpotHedge's"] = Figure(min(gains), ">= 0")
    return figures


def _list_jobs(
    folder: Path, n_windows: int, parts: Mapping[str, tuple[float, float]], *, is_lean: bool
) -> list[Job]:
    """Lists jobs; lean ones, and the held-out windows, are without notices and of two policies."""
    is_whole = parts is not HELD_OUT and not is_lean
    policies = list(POLICIES) if is_whole else ["SpotHedge", "Arriero"]
    return [
        Job(folder / trace, policy, start_up_s, has_notice, parts[trace], window, n_windows)
        for trace, start_up_s, window in itertools.product(TRACES, GOALS, range(n_windows))
        for has_notice in ((False, True) if is_whole else (False,))
        for policy in policies
        if not has_notice or policy in ("SpotHedge", "Arriero")
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.spot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--traces", type=Path, required=True, help="folder of the traces")
    parser.add_argument("--quick", action="store_true", help="two windows instead of ten")
    parser.add_argument("--plots", type=Path, help="folder for the plot")
    parser.add_argument("--part", choices=["both", *PARTS], default="both", help="of the traces")
    parser.add_argument("--lean", action="store_true", help="no notices, SpotHedge and ours only")
    parser.add_argument("--paid-s", type=float, default=0.0, help="charged for a node at least")
    parser.add_argument(
        "--history-h", type=float, default=0.0, help="hours that a policy has seen before a window"
    )
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(argv)
    n_windows = 2 if options.quick else 10
    figures: dict[str, Figure] = {}
    for prefix, parts in PARTS.items():
        if options.part not in ("both", prefix):
            continue
        jobs = _list_jobs(options.traces, n_windows, parts, is_lean=options.lean)
        history_s = 3600.0 * options.history_h
        jobs = [replace(job, paid_s=options.paid_s, history_s=history_s) for job in jobs]
        results = run_jobs(jobs, options.processes)
        print_results(f"Windows: {prefix}", results)
        print_spent(f"Cost by use: {prefix}", results)
        for has_notice in sorted({job.has_notice for job in jobs}):
            figures |= judge(results, has_notice, f"{prefix}, ")
        if options.plots and prefix == "whole":
            say(f"drew {draw(results, options.plots)}")
    print("\n" + describe_run(f"python -m bench.spot {' '.join(argv or sys.argv[1:])}"))
    print_figures("spot", figures, is_quick=options.quick)


if __name__ == "__main__":
    main()
