"""The least that availability can cost on the public spot traces, whatever the policy.

    python -m bench.spot_bound --traces FOLDER                 the windows of `bench.spot`
    python -m bench.spot_bound --traces FOLDER --part held-out

Two bounds, in the cost that `bench.spot` prints, without notices:

- **clairvoyant**: of a policy that knows the whole future. Of every window by itself the cheapest
  cover is found (`spot_flow.py`); nobody reaches it who does not know the future.
- **informed**: of a policy that is surprised by reclaims, but knows all else: which zones have
  room, for how many nodes and since when, and the rates of reclaims by zone, number of nodes and
  age as they come out of these very windows. It changes what it holds at once and free of charge;
  two zones that go in one go are forgiven. It pays for what it holds, and is short for one start-up
  after each reclaim that leaves too few: what is asked for at that time is ready no sooner.
- **by age**: the same for a policy that cannot tell zones apart but by age: it knows the rates of
  all zones together. No bound, as zones do differ, but what is to be had before they are known.

A policy may be short when it likes, as long as it is so for no more than the goal allows on the
mean of the windows: each price of being short gives a bound, and the highest counts (Lagrange).
"""

import argparse
import itertools
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

from bench.report import describe_run, print_table, say
from bench.spot import GOALS, PARTS, TRACES, Job, run_job
from bench.spot_flow import cheapest_cover, count_ticks, list_stays
from bench.spot_sim import Setting, choose_offsets
from bench.spot_trace import Trace, load_trace
from cluster.policy.fleet import ZoneId

_AGES_H = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Where one class of ages ends and the next begins."""
_SHORT_PRICES = tuple(1.5**i for i in range(28))
"""Of an hour without the target, in spot nodes' hours."""

Ages = tuple[int, ...]
"""By number of nodes from one on, the class of ages of a zone's room for so many; to the target."""
Moment = tuple[tuple[ZoneId, Ages], ...]
Class = tuple[ZoneId, int, int]
"""A zone, a number of nodes and a class of ages: what has a rate of reclaims, told by the tick."""


def bound_clairvoyant(
    trace: Trace, setting: Setting, offsets_s: Sequence[float]
) -> list[tuple[float, float]]:
    """Returns by price of being short the windows' mean cost with that price, in node-ticks."""
    stays = [list_stays(trace, setting, offset_s) for offset_s in offsets_s]
    return [
        (price, mean(cheapest_cover(s, setting, price / setting.target) for s in stays))
        for price in _SHORT_PRICES
        if price >= setting.target * setting.on_demand_usd_per_h
    ]


def bound_informed(
    trace: Trace, setting: Setting, offsets_s: Sequence[float], *, tells_zones: bool = True
) -> list[tuple[float, float]]:
    """Returns the same for a policy that knows rates only, of each zone or of all together."""
    fronts = list_fronts(trace, setting, offsets_s, tells_zones=tells_zones)
    _, n_start = count_ticks(setting)

    def cost(choices: Mapping[float, float], price: float) -> float:
        risky = (p - price * math.expm1(-rate * n_start) for p, rate in choices.items())
        return min(price, *risky)

    return [
        (price, sum(weight * cost(front, price) for _, weight, front in fronts) / len(offsets_s))
        for price in _SHORT_PRICES
    ]


def list_fronts(
    trace: Trace, setting: Setting, offsets_s: Sequence[float], *, tells_zones: bool
) -> list[tuple[Moment, int, dict[float, float]]]:
    """Returns each moment, the ticks that it lasts in all, and what can be chosen in it."""
    moments: Counter[Moment] = Counter()
    met, lost = Counter[Class](), Counter[Class]()
    for offset_s in offsets_s:
        before: Moment = ()
        for moment, n_ticks in list_moments(trace, setting, offset_s):
            moments[moment] += n_ticks
            rooms = Counter({zone: len(ages) for zone, ages in moment})
            for zone, ages in before:
                for level in range(rooms[zone] + 1, len(ages) + 1):
                    lost[zone, level, ages[level - 1]] += 1
            for zone, ages in moment:
                for level, age in enumerate(ages, 1):
                    met[zone, level, age] += n_ticks
            before = moment
    rates = {key: lost[key] / met[key] for key in met} if tells_zones else _pool(lost, met)
    return [(m, weight, list_choices(m, rates, setting)) for m, weight in moments.items()]


def _pool(lost: Counter[Class], met: Counter[Class]) -> dict[Class, float]:
    together: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for zone, level, age in met:
        sums = together[level, age]
        sums[0] += lost[zone, level, age]
        sums[1] += met[zone, level, age]
    return {key: together[key[1:]][0] / together[key[1:]][1] for key in met}


def list_moments(trace: Trace, setting: Setting, offset_s: float) -> Iterator[tuple[Moment, int]]:
    """Yields what a window's moments have to offer, and the ticks that each lasts."""
    n_ticks, _ = count_ticks(setting)
    steps = Counter(int((offset_s + t * setting.tick_s) // trace.gap_s) for t in range(n_ticks))
    first = min(steps)
    since: dict[tuple[ZoneId, int], int] = {}
    for step in range(first + len(steps)):
        moment = []
        for zone, rooms in trace.rooms.items():
            room = min(rooms[step], setting.target)
            for level in range(room + 1, setting.target + 1):
                since.pop((zone, level), None)
            begun = [since.setdefault((zone, level), step) for level in range(1, room + 1)]
            if begun:
                ages_h = ((step - b) * trace.gap_s / 3600.0 for b in begun)
                moment.append((zone, tuple(sum(h >= a for a in _AGES_H) for h in ages_h)))
        if step >= first:
            yield tuple(moment), steps[step]


def list_choices(
    moment: Moment, rates: Mapping[Class, float], setting: Setting
) -> dict[float, float]:
    """Returns by price the lowest rate at which nodes of that price fall below the target."""
    choices: dict[float, float] = defaultdict(lambda: math.inf)
    for counts in itertools.product(*(range(len(ages) + 1) for _, ages in moment)):
        for n_on_demand in range(setting.target + 1):
            n_nodes = sum(counts) + n_on_demand
            if n_nodes < setting.target:
                continue
            rate = 0.0
            for (zone, ages), count in zip(moment, counts, strict=True):
                level = setting.target - (n_nodes - count)
                if count and level >= 1:
                    rate += rates[zone, level, ages[level - 1]]
            spot = sum(counts) * setting.spot_usd_per_h
            price = spot + n_on_demand * setting.on_demand_usd_per_h
            choices[price] = min(choices[price], rate)
    return choices


def lower(bounds: Sequence[tuple[float, float]], setting: Setting, goal: float) -> float:
    """Returns the cost, over on-demand nodes', below which nobody is short for 1 - goal only."""
    n_ticks, n_start = count_ticks(setting)
    whole = setting.target * n_ticks * setting.on_demand_usd_per_h
    allowed = (1.0 - goal) * (n_ticks - n_start)
    return max(cost - price * allowed for price, cost in bounds) / whole


def _bound(
    folder: Path, start_up_s: float, part: tuple[float, float], n_windows: int
) -> tuple[list[str], tuple[float, ...]]:
    trace, setting = load_trace(folder), Setting(start_up_s=start_up_s)
    offsets_s = choose_offsets(trace, setting, n_windows, part)
    jobs = [
        Job(folder, "SpotHedge", start_up_s, False, part, i, n_windows) for i in range(n_windows)
    ]
    outcomes = [run_job(job) for job in jobs]
    available, cost = mean(o.availability for o in outcomes), mean(o.cost for o in outcomes)
    clairvoyant = bound_clairvoyant(trace, setting, offsets_s)
    informed = bound_informed(trace, setting, offsets_s)
    by_age = bound_informed(trace, setting, offsets_s, tells_zones=False)
    wanted = [(clairvoyant, GOALS[start_up_s])]
    wanted += [(b, goal) for goal in (GOALS[start_up_s], available) for b in (informed, by_age)]
    bounds = [lower(bound, setting, goal) for bound, goal in wanted]
    ratios = tuple(bound / cost for bound in bounds)
    cells = [f"{bound:.3f} ({ratio:.2f})" for bound, ratio in zip(bounds, ratios, strict=True)]
    return [f"{trace.name}, {start_up_s:g} s", f"{available:.4f} at {cost:.3f}", *cells], ratios


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the bounds."""
    parser = argparse.ArgumentParser(prog="python -m bench.spot_bound", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--traces", type=Path, required=True, help="folder of the traces")
    parser.add_argument("--part", choices=[*PARTS], default="whole", help="of the traces")
    parser.add_argument("--windows", type=int, default=10)
    options = parser.parse_args(argv)
    rows = []
    for start_up_s in GOALS:
        ratios = []
        for name in TRACES:
            part = PARTS[options.part][name]
            row, ratio = _bound(options.traces / name, start_up_s, part, options.windows)
            say(" ".join(row))
            rows.append(row)
            ratios.append(ratio)
        rows.append(
            [f"mean, {start_up_s:g} s", "", *(f"{mean(r):.2f}" for r in zip(*ratios, strict=True))]
        )
    print_table(f"Least cost, and that over SpotHedge's: {options.part}", _HEAD, rows)
    print("\n" + describe_run(f"python -m bench.spot_bound {' '.join(argv or sys.argv[1:])}"))


_HEAD = (
    "trace, start-up",
    "SpotHedge",
    "clairvoyant, goal",
    "informed, goal",
    "by age, goal",
    "informed, as SpotHedge",
    "by age, as SpotHedge",
)


if __name__ == "__main__":
    main()
