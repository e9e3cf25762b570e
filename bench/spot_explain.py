"""Says where the money goes on the public spot traces: ours, SpotHedge's and the least possible.

    python -m bench.spot_explain --traces FOLDER [--part held-out] [--windows 10]

By the number of zones that had room. Costs are parts of the mean cost that `bench.spot` prints, so
that a column adds up to it; the nodes are means over that time; `short` is in minutes a day, of
which the goal allows 1.4 (start-up 120 s) and 7.2 (600 s). The bound is that by age of
`bench.spot_bound` at the goal: it sees every zone and moves for nothing.
"""

import argparse
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.report import describe_run, print_table, say
from bench.spot import GOALS, PARTS, TRACES, Job, run_jobs
from bench.spot_bound import bound_informed, list_fronts
from bench.spot_flow import count_ticks
from bench.spot_sim import Outcome, Setting, Tally, choose_offsets
from bench.spot_trace import load_trace

_POLICIES = ("SpotHedge", "Arriero")
_DAY_MIN = 1440.0


def sum_tallies(outcomes: Sequence[Outcome]) -> dict[int, Tally]:
    """Returns what windows held together, by the number of zones with room."""
    total: defaultdict[int, Tally] = defaultdict(Tally)
    for outcome in outcomes:
        for n_open, tally in outcome.by_open.items():
            total[n_open] += tally
    return dict(total)


def spend_least(
    folder: Path, setting: Setting, offsets_s: Sequence[float], goal: float
) -> dict[int, tuple[float, float]]:
    """Returns the bound's node-ticks paid and ticks short, by the number of zones with room."""
    trace = load_trace(folder)
    n_ticks, n_start = count_ticks(setting)
    allowed = (1.0 - goal) * (n_ticks - n_start)
    bounds = bound_informed(trace, setting, offsets_s, tells_zones=False)
    price, _ = max(bounds, key=lambda bound: bound[1] - bound[0] * allowed)
    spent: defaultdict[int, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for moment, weight, front in list_fronts(trace, setting, offsets_s, tells_zones=False):
        short = {usd: -math.expm1(-rate * n_start) for usd, rate in front.items()}
        usd = min(short, key=lambda usd: usd + price * short[usd])
        before = spent[len(moment)]
        spent[len(moment)] = before[0] + weight * usd, before[1] + weight * short[usd]
    return dict(spent)


def list_rows(
    name: str,
    setting: Setting,
    least: Mapping[int, tuple[float, float]],
    held: Mapping[str, Mapping[int, Tally]],
) -> list[list[str]]:
    """Returns a line for each number of zones with room, and one for all."""
    whole = sum(tally.ticks for tally in next(iter(held.values())).values())
    full = whole * setting.target * setting.on_demand_usd_per_h
    numbers = sorted(next(iter(held.values())))
    rows = []
    for title, chosen in [*((str(n), [n]) for n in numbers), ("all", numbers)]:
        ticks = sum(held[_POLICIES[0]][n].ticks for n in chosen)
        usd, short = (sum(least.get(n, (0.0, 0.0))[i] for n in chosen) for i in (0, 1))
        row = [name, title, f"{ticks / whole:.3f}"]
        row += [f"{usd / full:.3f}", f"{short / whole * _DAY_MIN:.1f}"]
        for policy in _POLICIES:
            tally = sum((held[policy].get(n, Tally()) for n in chosen), Tally())
            row += [
                f"{tally.usd_per_h / full:.3f}",
                f"{tally.spot / ticks:.1f} + {tally.on_demand / ticks:.1f}",
                f"{tally.short / whole * _DAY_MIN:.1f}",
            ]
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.spot_explain", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--traces", type=Path, required=True, help="folder of the traces")
    parser.add_argument("--part", choices=[*PARTS], default="whole", help="of the traces")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(argv)
    rows = []
    for start_up_s, name in itertools.product(GOALS, TRACES):
        folder, part = options.traces / name, PARTS[options.part][name]
        jobs = [
            Job(folder, policy, start_up_s, False, part, i, options.windows)
            for policy, i in itertools.product(_POLICIES, range(options.windows))
        ]
        results = run_jobs(jobs, options.processes)
        held = {
            policy: sum_tallies(results[name, policy, start_up_s, False]) for policy in _POLICIES
        }
        setting = Setting(start_up_s=start_up_s)
        offsets_s = choose_offsets(load_trace(folder), setting, options.windows, part)
        least = spend_least(folder, setting, offsets_s, GOALS[start_up_s])
        rows += list_rows(f"{name}, {start_up_s:g} s", setting, least, held)
        say(" ".join(rows[-1]))
    print_table(f"Where the money goes: {options.part}", _HEAD, rows)
    print("\n" + describe_run(f"python -m bench.spot_explain {' '.join(argv or sys.argv[1:])}"))


_HEAD = (
    "trace, start-up",
    "open",
    "time",
    "bound",
    "short",
    *itertools.chain(*((f"{p}", "spot + on demand", "short") for p in _POLICIES)),
)


if __name__ == "__main__":
    main()
