"""Draws what availability costs: each policy over its own parameter, and the least of all.

    python -m bench.spot_curve --traces FOLDER --plots bench/plots [--part held-out] [--windows 10]

Ours is drawn over `caution`, SpotHedge over its number of spare spot nodes: 1 is as published. What
ours costs at an availability is read off the straight line between two of its points.
"""

import argparse
import itertools
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.report import describe_run, print_table, say
from bench.spot import GOALS, PARTS, SWEPT, TRACES, Job, run_jobs
from bench.spot_bound import bound_informed, lower
from bench.spot_sim import Setting, choose_offsets
from bench.spot_trace import load_trace

Point = tuple[float, float]
"""Availability and cost."""
_SHORTS = tuple(1e-4 * 1.5**i for i in range(15))


def cost_at(points: Sequence[Point], availability: float) -> float | None:
    """Returns what an availability costs along the points; None beyond the best of them."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p[1], -p[0])):
        if not front or point[0] > front[-1][0]:
            front.append(point)
    i = bisect_left([available for available, _ in front], availability)
    if i == len(front):
        return None
    if i == 0:
        return front[0][1]
    (a, c), (b, d) = front[i - 1], front[i]
    return c + (d - c) * (availability - a) / (b - a)


def run_curves(
    folder: Path, part: Mapping[str, tuple[float, float]], n_windows: int, processes: int
) -> dict[tuple[str, float, str], list[Point]]:
    """Returns each policy's points on each trace at each start-up time."""
    jobs = [
        Job(folder / trace, policy, start_up_s, False, part[trace], window, n_windows)
        for trace, start_up_s in itertools.product(TRACES, GOALS)
        for policy in itertools.chain(*SWEPT.values())
        for window in range(n_windows)
    ]
    results = run_jobs(jobs, processes)
    curves: dict[tuple[str, float, str], list[Point]] = {}
    for trace, start_up_s in itertools.product(TRACES, GOALS):
        for name, policies in SWEPT.items():
            curves[trace, start_up_s, name] = [
                (mean(o.availability for o in found), mean(o.cost for o in found))
                for policy in policies
                for found in [results[trace, policy, start_up_s, False]]
            ]
    return curves


def find_least(
    folder: Path, start_up_s: float, part: tuple[float, float], n_windows: int
) -> list[Point]:
    """Returns points of the informed bound."""
    trace, setting = load_trace(folder), Setting(start_up_s=start_up_s)
    offsets_s = choose_offsets(trace, setting, n_windows, part)
    bounds = bound_informed(trace, setting, offsets_s)
    return [(1.0 - short, lower(bounds, setting, 1.0 - short)) for short in _SHORTS]


def draw(curves: Mapping[tuple[str, float, str], Sequence[Point]], path: Path) -> None:
    """Writes a plot for each trace and start-up time."""
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "spot"
    figure = Figure(figsize=(4 * len(TRACES), 3.2 * len(GOALS)), layout="constrained")
    grid = figure.subplots(len(GOALS), len(TRACES), squeeze=False)
    for row, (start_up_s, goal) in zip(grid, GOALS.items(), strict=True):
        for axis, trace in zip(row, TRACES, strict=True):
            for (at, at_s, name), points in curves.items():
                if (at, at_s) == (trace, start_up_s):
                    short = [max(1.0 - available, 1e-4) for available, _ in points]
                    mark = "--" if name == "bound" else "o-"
                    axis.plot(short, [cost for _, cost in points], mark, ms=4, label=name)
            axis.axvline(1.0 - goal, color="grey", lw=0.7)
            axis.set_xscale("log")
            axis.invert_xaxis()
            axis.set_title(f"{trace}, start-up {start_up_s:g} s")
    grid[-1][0].set_xlabel("share of time short of the target")
    grid[-1][0].set_ylabel("cost / on-demand")
    grid[0][0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def list_rows(curves: Mapping[tuple[str, float, str], Sequence[Point]]) -> list[list[str]]:
    """Returns the table's lines: SpotHedge as published, and ours at its availability."""
    rows = []
    for start_up_s, trace in itertools.product(GOALS, TRACES):
        available, cost = curves[trace, start_up_s, "SpotHedge"][1]
        cells = [f"{trace}, {start_up_s:g} s", f"{available:.4f} at {cost:.3f}"]
        for wanted in (available, GOALS[start_up_s]):
            ours = cost_at(curves[trace, start_up_s, "Arriero"], wanted)
            cells.append("not reached" if ours is None else f"{ours:.3f} ({ours / cost:.2f})")
        rows.append(cells)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the sweep."""
    parser = argparse.ArgumentParser(prog="python -m bench.spot_curve", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--traces", type=Path, required=True, help="folder of the traces")
    parser.add_argument("--plots", type=Path, required=True, help="folder for the plot")
    parser.add_argument("--part", choices=[*PARTS], default="whole", help="of the traces")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(argv)
    part = PARTS[options.part]
    curves = run_curves(options.traces, part, options.windows, options.processes)
    for row in list_rows(curves):
        say(", ".join(row))
    print_table(f"Cost at equal availability: {options.part}", _HEAD, list_rows(curves))
    for trace, start_up_s in itertools.product(TRACES, GOALS):
        least = find_least(options.traces / trace, start_up_s, part[trace], options.windows)
        curves[trace, start_up_s, "bound"] = least
    draw(curves, options.plots / f"spot-curve-{options.part}.svg")
    print("\n" + describe_run(f"python -m bench.spot_curve {' '.join(argv or sys.argv[1:])}"))


_HEAD = ("trace, start-up", "SpotHedge", "ours as available", "ours at the goal")


if __name__ == "__main__":
    main()
