"""How many first tokens come in time at overload, by what is turned away: a simulation.

    python -m bench.objective            twenty minutes of every case
    python -m bench.objective --quick    five

The real router with a clock of its own, eight tenants, one engine of 16 places; a request keeps
its place for 1 to 5 s. Requests arrive at random, at so many times what the engine can do. Those
that are turned away count as missed. Beside it, in one line for all tenants, the newest first as in
S-LoRA's early abort (Sheng et al., MLSys 2024), and first come, first served. Seeded.
"""

import argparse
import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.load import percentiles
from bench.report import Figure, describe_run, print_figures, print_table, say
from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import Grant, Leave, Refuse, Resume, TicketId
from serve_app.names import ModelName
from tests.support.router_post import FakeClock, FakeMailbox, enqueue, report
from tests.support.settings import write_args, write_model

_PLACES = 16
_HOLDS_S = (1.0, 5.0)
_OBJECTIVE_S = 6.0
_TENANTS = 8
_LOADS = (0.9, 1.1, 1.5, 2.0)
_LOOK_S = 1.0
_MODEL = ModelName("tiny")
_GATEWAY = b"gateway"


@dataclass(frozen=True)
class Arrival:
    """One request."""

    at_s: float
    tenant: int
    holds_s: float


@dataclass
class Outcome:
    """Who got a first token, and after how long."""

    n_sent: int = 0
    waits_s: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By tenant."""

    @property
    def all_waits_s(self) -> list[float]:
        """Of everyone who was served."""
        return [wait_s for waits_s in self.waits_s.values() for wait_s in waits_s]

    @property
    def attainment(self) -> float:
        """Share of all requests whose first token came in time."""
        return sum(wait_s <= _OBJECTIVE_S for wait_s in self.all_waits_s) / self.n_sent


def draw(load: float, length_s: float, is_skewed: bool, seed: int) -> list[Arrival]:
    """Draws arrivals; one tenant in eight sends half of them if they are skewed."""
    rng = random.Random(seed)
    rate = load * _PLACES / (sum(_HOLDS_S) / 2)
    found, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(rate)) < length_s:
        is_heavy = is_skewed and rng.random() < 0.5
        tenant = 0 if is_heavy else rng.randrange(is_skewed, _TENANTS)
        found.append(Arrival(at_s, tenant, rng.uniform(*_HOLDS_S)))
    return found


def by_router(arrivals: list[Arrival], objective_s: float | None) -> Outcome:
    """Lets the router decide."""
    post, clock = FakeMailbox(), FakeClock()
    model = write_model(_MODEL, ttft_objective_s=objective_s)
    limits = {"max_waiting": 100_000, "max_wait_s": 86_400.0}
    router = Router(_MODEL, parse_settings(write_args(model, limits=limits)), post, clock)
    router.handle(_GATEWAY, Resume(model=_MODEL))
    began_s, outcome = clock.now_s, Outcome(len(arrivals))
    router.handle(b"e", report("e", max_running=_PLACES, model=_MODEL))
    ends: list[tuple[float, int]] = []
    looked_s = began_s

    def take_answers() -> None:
        for mail in post.take(_GATEWAY):
            if isinstance(mail, Grant):
                number = int(mail.ticket)
                one = arrivals[number]
                outcome.waits_s[one.tenant].append(clock.now_s - began_s - one.at_s)
                heapq.heappush(ends, (clock.now_s + one.holds_s, number))
            else:
                assert not isinstance(mail, Refuse) or objective_s is not None

    def pass_until(until_s: float) -> None:
        nonlocal looked_s
        while True:
            next_s = min(ends[0][0] if ends else until_s, looked_s + _LOOK_S, until_s)
            clock.now_s = next_s
            if ends and next_s == ends[0][0]:
                _, number = heapq.heappop(ends)
                router.handle(_GATEWAY, Leave(TicketId(str(number)), True, 10, 0))
            elif next_s == looked_s + _LOOK_S:
                looked_s = next_s
                router.handle(b"e", report("e", max_running=_PLACES, model=_MODEL))
                router.look_around()
            else:
                return
            take_answers()

    for number, one in enumerate(arrivals):
        pass_until(began_s + one.at_s)
        router.handle(_GATEWAY, enqueue(str(number), f"t{one.tenant}"))
        take_answers()
    return outcome


def in_line(arrivals: list[Arrival], choose: Callable[[list[Arrival], float], Arrival]) -> Outcome:
    """Lets all wait in one line."""
    outcome, waiting = Outcome(len(arrivals)), list[Arrival]()
    ends = [0.0] * _PLACES
    for one in [*arrivals, None]:
        until_s = float("inf") if one is None else one.at_s
        while waiting and ends[0] <= until_s:
            now_s = max(ends[0], waiting[0].at_s)
            chosen = choose(waiting, now_s)
            outcome.waits_s[chosen.tenant].append(max(now_s, chosen.at_s) - chosen.at_s)
            heapq.heapreplace(ends, max(now_s, chosen.at_s) + chosen.holds_s)
        if one is not None:
            waiting.append(one)
    return outcome


def oldest(waiting: list[Arrival], now_s: float) -> Arrival:
    return waiting.pop(0)


def newest(waiting: list[Arrival], now_s: float) -> Arrival:
    """Those that are late already are turned away, unless nobody else is there."""
    waiting[:-1] = [one for one in waiting[:-1] if now_s - one.at_s <= _OBJECTIVE_S]
    return waiting.pop()


def cases(arrivals: list[Arrival]) -> Iterator[tuple[str, Outcome]]:
    """Yields what becomes of the same arrivals in every way."""
    yield "fair, serving all", by_router(arrivals, None)
    yield "fair, turning away", by_router(arrivals, _OBJECTIVE_S)
    yield "one line, oldest first", in_line(arrivals, oldest)
    yield "one line, newest first", in_line(arrivals, newest)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five minutes of each case")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows, figures = [], {}
    for load in _LOADS:
        for is_skewed in (False, True):
            title = f"load {load:g}{', one sends half' if is_skewed else ''}"
            arrivals = draw(load, 300.0 if options.quick else 1200.0, is_skewed, options.seed)
            found = dict(cases(arrivals))
            for name, outcome in found.items():
                waits = percentiles(outcome.all_waits_s)
                served = len(outcome.all_waits_s) / outcome.n_sent
                light = [s for t, some in outcome.waits_s.items() if t for s in some]
                numbers = [outcome.attainment, served, waits["p50"], waits["p99"]]
                numbers.append(percentiles(light)["p99"])
                rows.append([f"{title}: {name}", *(f"{number:.2f}" for number in numbers)])
            say(title)
            gain = found["fair, turning away"].attainment - found["fair, serving all"].attainment
            figures[f"attainment, {title}"] = Figure(found["fair, turning away"].attainment)
            figures[f"gain, {title}"] = Figure(gain, ">= -0.01")
    print(describe_run(f"python -m bench.objective{' --quick' if options.quick else ''}"))
    head = ["case", "in time, of all", "served", "wait p50, s", "p99", "p99, but the first tenant"]
    print_table(f"First tokens within {_OBJECTIVE_S:g} s", head, rows)
    print_figures("objective", figures, is_quick=options.quick)


if __name__ == "__main__":
    main()
