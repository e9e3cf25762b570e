"""What ten times more than it can serve does to the platform: ten minutes of it, open loop.

    python -m bench.overload            ten minutes
    python -m bench.overload --quick    one minute

An echo engine with the paces of a batch stands behind the whole platform: HAProxy, gateway,
router, ledger, on a Ray of its own. Capacity is what closed-loop clients get of it who are twice
as many as its places. Then, over HTTP, requests leave when they are due, whether or not others
were answered: at half of capacity, at ten times capacity, at half again. Goodput counts the
tokens of whole, right answers; nothing else.

`refusals true`: what refused clients were told of the wait, against the wait of those who were
let in at that time.
"""

import argparse
import asyncio
import contextlib
import random
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from statistics import median

import psutil

from bench.arriero_system import ARRIERO_ROLES, arriero_application, describe_model
from bench.load import (
    Answer,
    Percentiles,
    completion_ask,
    completion_asks,
    draw_prompt,
    percentiles,
    run_load,
)
from bench.open_load import OpenLoad, Shot, run_open
from bench.processes import Role
from bench.ray_served import RayServed
from bench.report import Figure, describe_run, print_figures, print_table, say
from bench.sampler import Sampler
from bench.systems import MODEL_NAME, wait_ready

_SEATS = 16
_STEP_S = 0.025
_PROMPT, _OUTPUT = 32, 64
"""Tokens: some ten requests a second in all, so that clients and platform fit two cores."""
_TIMES = 10.0
_CALM = 0.5
"""Load before and after, as a part of capacity."""
_DEADLINE_S = 10.0
"""`limits.max_wait_s`."""
_SLACK_S = 1.0
"""What a first token may take once its request's turn has come."""
_CALM_S = 30.0
_AFTER_S = 60.0
_NORMAL = 2.0
"""Times the calm median at which latency is normal again."""
_WINDOW_S = 5.0
_WATCHED = ("gateway", "router", "ledger", "HAProxy", "engine")
Resident = tuple[float, dict[Role, float]]
"""Seconds of the monotonic clock, and MiB by role."""
_WAIT_TOLD = re.compile(r"would come in ([0-9.]+) s")


def main() -> int:
    options = _parse_options()
    seconds = options.seconds or (60.0 if options.quick else 600.0)
    served = RayServed("Arriero", [_describe()], {}, ARRIERO_ROLES)
    try:
        served.start()
        say(f"ready after {wait_ready(served):.0f} s")
        figures = asyncio.run(_measure(served, seconds))
    finally:
        served.stop()
    print(describe_run("make bench-overload ARGS='" + " ".join(sys.argv[1:]) + "'"))
    known = [(name, f.value, f.target) for name, f in figures.items() if f.value is not None]
    rows = [[name, f"{value:.4g}", target] for name, value, target in known]
    print_table("Ten times capacity", ["figure", "measured", "target"], rows)
    print_figures("overload", figures, is_quick=options.quick)
    return 0 if all(figure.is_ok is not False for figure in figures.values()) else 1


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one minute")
    parser.add_argument("--seconds", type=float, help="of overload")
    return parser.parse_args()


def _describe() -> dict[str, object]:
    batch = {"step_s": _STEP_S}
    model = describe_model(MODEL_NAME, {"kind": "echo", "max_num_seqs": _SEATS, "batch": batch})
    return arriero_application([model], limits={"max_wait_s": _DEADLINE_S})


async def _measure(served: RayServed, seconds: float) -> dict[str, Figure]:
    rng = random.Random(1)
    asks = completion_asks(MODEL_NAME, _PROMPT, _OUTPUT, rng)
    full = await run_load(served.base_url, asks, 2 * _SEATS, 20 * _SEATS)
    capacity = full.tokens_per_s / _OUTPUT
    say(f"capacity {capacity:.2f} requests/s; {seconds:.0f} s at {_TIMES:g} times that begin")
    ends_s = _CALM_S + seconds
    phases = [
        (0.0, _CALM_S, _CALM * capacity),
        (_CALM_S, ends_s, _TIMES * capacity),
        (ends_s, ends_s + _AFTER_S, _CALM * capacity),
    ]
    shots = [shot for phase in phases for shot in _draw(served.base_url, *phase, rng)]
    watched = [pair for pair in served.processes.with_roles() if pair[1] in _WATCHED]
    with Sampler(partial(_resident_mib, watched), 1.0) as memory:
        load = await run_open(shots, ends_s + _AFTER_S + _DEADLINE_S + 5.0)
    return _judge(load, memory.samples, capacity, seconds)


def _resident_mib(processes: Sequence[tuple[psutil.Process, Role]]) -> dict[Role, float]:
    """Resident memory of these processes, by role."""
    found: dict[Role, float] = defaultdict(float)
    for process, role in processes:
        with contextlib.suppress(psutil.Error):
            found[role] += process.memory_info().rss / 2**20
    return found


def _draw(
    url: str, since_s: float, until_s: float, rate_rps: float, rng: random.Random
) -> list[Shot]:
    """Requests of a Poisson process."""
    shots, at_s = [], since_s
    while (at_s := at_s + rng.expovariate(rate_rps)) < until_s:
        ask = completion_ask(MODEL_NAME, draw_prompt(_PROMPT, rng), _OUTPUT)
        shots.append(Shot(at_s, url, ask))
    return shots


def _judge(
    load: OpenLoad, memory: Sequence[Resident], capacity: float, seconds: float
) -> dict[str, Figure]:
    begins_s = load.started_s + _CALM_S
    ends_s = begins_s + seconds
    whole = [answer for answer in load.answers if answer.ended_s and not answer.error]
    calm = [a.ttft_s for a in whole if a.sent_s < begins_s]
    hot = [a for a in load.answers if begins_s <= a.sent_s < ends_s]
    admitted = [a for a in hot if a.arrivals_s]
    refused = [a for a in hot if _is_refused(a)]
    n_refused = sum(map(_is_refused, load.answers))
    # Answers that were begun before it ended for answers that had begun before it.
    n_good = sum(begins_s <= a.ended_s < ends_s for a in whole)
    figures = {
        "capacity_rps": Figure(capacity),
        "offered_rps": Figure(len(hot) / seconds),
        "goodput_of_capacity": Figure(n_good / seconds / capacity, ">= 0.95"),
        "ttft_calm_p50_s": Figure(median(calm)),
        "ttft_admitted_p50_s": Figure(_ttft_s(admitted)["p50"]),
        "ttft_admitted_p99_s": Figure(_ttft_s(admitted)["p99"], f"<= {_DEADLINE_S + _SLACK_S:g}"),
        "refusals": Figure(len(refused)),
        "refusal_p50_s": Figure(_e2e_s(refused)["p50"]),
        "refusal_p99_s": Figure(_e2e_s(refused)["p99"], "<= 1"),
        "refusals_true": Figure(_truth(refused, admitted), ">= 0.5"),
        "neither_answered_nor_refused": Figure(len(load.answers) - len(whole) - n_refused, "<= 0"),
        "normal_after_s": Figure(_normal_after_s(whole, ends_s, median(calm)), "<= 30"),
        "late_clients": Figure(load.n_late),
    }
    for role in _WATCHED:
        first, last = _growth(memory, role, begins_s + min(30.0, seconds / 4), ends_s)
        figures[f"rss_{role.lower()}_mib"] = Figure(last)
        figures[f"rss_{role.lower()}_growth"] = Figure(last / first, "<= 1.05")
    for error in sorted({a.error[:200] for a in load.answers if a.error and not _is_refused(a)})[
        :5
    ]:
        say(f"error: {error}")
    return figures


def _growth(
    memory: Sequence[Resident], role: Role, since_s: float, until_s: float
) -> tuple[float, float]:
    """Returns a role's medians of the first and the last fifth of some time."""
    known = [mib[role] for at_s, mib in memory if since_s <= at_s <= until_s]
    part = max(1, len(known) // 5)
    return median(known[:part]), median(known[-part:])


def _is_refused(answer: Answer) -> bool:
    return answer.error.startswith("status 503")


def _ttft_s(answers: Sequence[Answer]) -> Percentiles:
    return percentiles([answer.ttft_s for answer in answers])


def _e2e_s(answers: Sequence[Answer]) -> Percentiles:
    return percentiles([answer.e2e_s for answer in answers])


def _by_window(answers: Sequence[Answer]) -> dict[int, list[Answer]]:
    found: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[int(answer.sent_s / _WINDOW_S)].append(answer)
    return found


def _truth(refused: Sequence[Answer], admitted: Sequence[Answer]) -> float | None:
    """Median over windows of told wait to real wait, or the other way, whichever is below 1."""
    had = {i: median(a.ttft_s for a in some) for i, some in _by_window(admitted).items()}
    ratios = []
    for i, some in _by_window(refused).items():
        told = [float(match[1]) for a in some if (match := _WAIT_TOLD.search(a.error))]
        if told and i in had:
            ratios.append(min(median(told) / had[i], had[i] / median(told)))
    return median(ratios) if ratios else None


def _normal_after_s(answers: Sequence[Answer], since_s: float, calm_s: float) -> float:
    """Seconds from the end of the overload to the end of the last window that was not normal."""
    after = [answer for answer in answers if answer.sent_s >= since_s]
    late = [
        i
        for i, some in _by_window(after).items()
        if median(a.ttft_s for a in some) > _NORMAL * calm_s
    ]
    return max(((i + 1) * _WINDOW_S - since_s for i in late), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
