"""Loads of adapters under routing by residency, by load alone, and at random: a simulation.

    python -m bench.adapter_routing            20,000 requests a case
    python -m bench.adapter_routing --quick    4,000

Requests arrive at nine tenths of what the engines can do, in random order, for adapters of a
power-law popularity (S-LoRA's: alpha 1 is uniform, less is more skewed). An engine keeps its most
recent adapters in memory; a request for another one is a load. Seeded; no model, no clock.
"""

import argparse
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.report import Figure, describe_run, print_figures, print_table, say
from serve_app.messages import EngineId
from serve_app.policy.adapters import AdapterEngine, choose_place

_SEATS = 32
_SLOTS = 32
_IN_MEMORY = 128
_ADAPTERS = 1000
_USE = 0.9


@dataclass
class Engine:
    """What a router knows of an engine, and what it did."""

    name: EngineId
    running: list[tuple[int, int]] = field(default_factory=list)
    """Adapter and steps left of each request."""
    memory: OrderedDict[int, None] = field(default_factory=OrderedDict)
    tokens: int = 0
    loads: int = 0

    def view(self) -> AdapterEngine:
        """As the policy sees it."""
        return AdapterEngine(
            self.name,
            True,
            len(self.running),
            _SEATS,
            _SLOTS,
            frozenset(adapter for adapter, _ in self.running),
            frozenset(self.memory),
        )

    def take(self, adapter: int, steps: int) -> None:
        """Starts a request, and loads its adapter if it must."""
        if adapter not in self.memory:
            self.loads += 1
        self.memory[adapter] = None
        self.memory.move_to_end(adapter)
        if len(self.memory) > _IN_MEMORY:
            used = {adapter for adapter, _ in self.running} | {adapter}
            del self.memory[next(a for a in self.memory if a not in used)]
        self.running.append((adapter, steps))

    def step(self) -> None:
        """Gives each running request a token."""
        self.tokens += len(self.running)
        self.running = [(adapter, left - 1) for adapter, left in self.running if left > 1]


Choose = Callable[[list[AdapterEngine], int, random.Random], EngineId | None]


def by_residency(engines: list[AdapterEngine], adapter: int, rng: random.Random) -> EngineId | None:
    place = choose_place(engines, adapter)
    return None if place is None else place.engine_id


def by_load(engines: list[AdapterEngine], adapter: int, rng: random.Random) -> EngineId | None:
    able = [engine for engine in engines if engine.in_flight < engine.room]
    return min(able, key=lambda e: (e.load, e.engine_id)).engine_id if able else None


def at_random(engines: list[AdapterEngine], adapter: int, rng: random.Random) -> EngineId | None:
    able = [engine for engine in engines if engine.in_flight < engine.room]
    return rng.choice(able).engine_id if able else None


ROUTINGS: dict[str, Choose] = {
    "residency": by_residency,
    "least loaded": by_load,
    "random": at_random,
}


@dataclass(frozen=True)
class Result:
    """What one run came to."""

    loads_per_1000: float
    balance: float
    """Of the busiest engine's tokens to the mean."""
    steps: int


def simulate(choose: Choose, n_engines: int, alpha: float, n_requests: int, seed: int) -> Result:
    """Serves all requests; the first that waits goes first."""
    rng = random.Random(seed)
    chance = random.Random(seed + 1)
    engines = {EngineId(f"e{i}"): Engine(EngineId(f"e{i}")) for i in range(n_engines)}
    mean_steps = (8 + 256) / 2
    per_step = _USE * n_engines * _SEATS / mean_steps
    waiting: deque[tuple[int, int]] = deque()
    due, n_sent, n_steps = 0.0, 0, 0
    while n_sent < n_requests or waiting:
        n_steps += 1
        due += per_step
        while due >= 1 and n_sent < n_requests:
            due, n_sent = due - 1, n_sent + 1
            waiting.append((int(_ADAPTERS * rng.random() ** (1 / alpha)), rng.randint(8, 256)))
        while waiting:
            chosen = choose([e.view() for e in engines.values()], waiting[0][0], chance)
            if chosen is None:
                break
            engines[chosen].take(*waiting.popleft())
        for engine in engines.values():
            engine.step()
    tokens = [engine.tokens for engine in engines.values()]
    loads = sum(engine.loads for engine in engines.values())
    return Result(1000 * loads / n_requests, max(tokens) * n_engines / sum(tokens), n_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description="Loads of adapters under three ways of routing.")
    parser.add_argument("--quick", action="store_true", help="a fifth of the requests")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    n_requests = 4_000 if options.quick else 20_000
    rows, figures = [], {}
    for n_engines, alpha in itertools.product((2, 4), (1.0, 0.6, 0.3)):
        found = {
            name: simulate(choose, n_engines, alpha, n_requests, options.seed)
            for name, choose in ROUTINGS.items()
        }
        say(f"{n_engines} engines, alpha {alpha}")
        for name, result in found.items():
            rows.append(
                [
                    f"{n_engines} engines, alpha {alpha:g}, {name}",
                    f"{result.loads_per_1000:.0f}",
                    f"{result.balance:.2f}",
                    f"{result.steps}",
                ]
            )
        case = f"{n_engines} engines, alpha {alpha:g}"
        ours, load = found["residency"], found["least loaded"]
        figures[f"loads_beside_least_loaded, {case}"] = Figure(
            ours.loads_per_1000 / load.loads_per_1000, "< 1"
        )
        figures[f"balance, {case}"] = Figure(ours.balance, "<= 1.3")
        figures[f"steps_beside_least_loaded, {case}"] = Figure(ours.steps / load.steps, "<= 1.02")
    print(describe_run(f"python -m bench.adapter_routing{' --quick' if options.quick else ''}"))
    head = ["case", "loads per 1,000", "busiest / mean", "steps"]
    print_table("Where requests with adapters go", head, rows)
    print_figures("adapter_routing", figures, is_quick=options.quick)


if __name__ == "__main__":
    main()
