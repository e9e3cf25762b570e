"""Prompt tokens computed again and again, by how engines are chosen: a simulation.

    python -m bench.prefix_routing            4,000 turns a case
    python -m bench.prefix_routing --quick    1,000

Conversations of several turns; tenants' prompts begin with a text of their own. Each engine has a
cache of blocks of 16 tokens, least recently used, that is its own truth and which nobody asks; what
the router believes of it is `policy.prefixes`, from marks. Whose turn it is says the real fair
queue, with and without a quantum for locality. A step computes up to 512 prompt tokens and gives
each other request a token; it takes what `bench.sim_engine` says of the paper's engine (Llama-2-7B
on an A10G). Users think between turns. Seeded; no model, no clock.
"""

import argparse
import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.report import Figure, describe_run, print_figures, print_table, say
from bench.sim_engine import EngineModel
from deployments.echo_cache import BlockCache
from serve_app.messages import EngineId, TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_bound import GapMeter
from serve_app.policy.fairness_options import Locality, MovingAverage
from serve_app.policy.fairness_settings import VtcSettings
from serve_app.policy.prefixes import PrefixMemory, mark_prompt, split_marks
from serve_app.policy.queueing import Waiting
from serve_app.policy.routing import EngineView, choose_engine
from serve_app.policy.turns import Fit

_SEATS = 16
_CACHE_TOKENS = 65_536
_PROMPT_TOKENS_A_STEP = 512
_TENANTS = 8
_SYSTEM_TOKENS = 512
_USES = (1.0, 3.0)
"""Conversations at a time, as a part of all seats. Of the first, half think and engines have room;
of the second, some wait."""
_THINKS_S = (2.0, 20.0)
_TURNS = (2, 10)
_SAID = (50, 400)
_ANSWER = (16, 256)
_PACE = EngineModel()
_WARM = 0.25
"""Part of the turns that only fills caches."""


@dataclass
class Turn:
    """One request of a conversation."""

    ticket: TicketId
    tenant: TenantId
    prompt: list[int]
    answer_tokens: int
    turns_left: int
    marks: Sequence[int] = ()
    uncomputed: int = 0
    """Prompt tokens that its engine has yet to compute."""
    cached: int = 0
    """Those that its engine had in truth."""
    produced: int = 0


@dataclass
class Engine:
    """An engine and what its router believes of it."""

    name: EngineId
    running: list[Turn] = field(default_factory=list)
    cache: BlockCache = field(default_factory=lambda: BlockCache(_CACHE_TOKENS))
    believed: PrefixMemory = field(default_factory=lambda: PrefixMemory(_CACHE_TOKENS))
    tokens: int = 0
    busy_s: float = 0.0

    def view(self, marks: Sequence[int]) -> EngineView:
        """As the policy sees it."""
        cached = self.believed.match(marks)
        return EngineView(self.name, True, len(self.running), _SEATS, cached)

    def take(self, turn: Turn) -> int:
        """Starts a request; returns how much of its prompt was there in truth."""
        cached = turn.cached = self.cache.match(turn.prompt)
        turn.uncomputed = len(turn.prompt) - cached
        self.cache.hold(turn.prompt)
        self.believed.note(turn.marks)
        self.running.append(turn)
        return cached

    def step(self) -> list[Turn]:
        """Computes some prompts, and gives each other request a token; returns what has ended."""
        budget = _PROMPT_TOKENS_A_STEP
        for turn in self.running:
            if turn.uncomputed:
                part = min(budget, turn.uncomputed)
                turn.uncomputed, budget = turn.uncomputed - part, budget - part
            else:
                turn.produced += 1
                self.tokens += 1
        computed = _PROMPT_TOKENS_A_STEP - budget
        self.busy_s += _PACE.time_step(len(self.running), 0, computed) if self.running else 0.0
        ended = [turn for turn in self.running if turn.produced >= turn.answer_tokens]
        self.running = [turn for turn in self.running if turn.produced < turn.answer_tokens]
        return ended


Choose = Callable[[Sequence[EngineView], random.Random], EngineView | None]


def _by_load(views: Sequence[EngineView], rng: random.Random) -> EngineView | None:
    able = [view for view in views if view.in_flight < view.room]
    return min(able, key=lambda v: (v.in_flight, v.engine_id)) if able else None


def _at_random(views: Sequence[EngineView], rng: random.Random) -> EngineView | None:
    able = [view for view in views if view.in_flight < view.room]
    return rng.choice(able) if able else None


ROUTINGS: dict[str, tuple[Choose, float]] = {
    "prefix": (lambda views, _: choose_engine(views), 0.0),
    "prefix, quantum 2,000": (lambda views, _: choose_engine(views), 2_000.0),
    "prefix, quantum 10,000": (lambda views, _: choose_engine(views), 10_000.0),
    "least loaded": (_by_load, 0.0),
    "random": (_at_random, 0.0),
}


@dataclass(frozen=True)
class Result:
    """What one run came to."""

    hit_rate: float
    """Of prompt tokens."""
    misbelief: float
    """Mean difference of what was believed and what was true, as a part of prompts."""
    balance: float
    """Of the busiest engine's output tokens to the mean."""
    gap: float
    """Greatest difference of service of two tenants that waited."""
    busy_s: float
    """Of all engines, for 1,000 output tokens."""


class Simulation:
    """Tenants that talk with a fleet, more than it can serve."""

    def __init__(self, routing: str, n_engines: int, use: float, n_turns: int, seed: int) -> None:
        self._choose, quantum = ROUTINGS[routing]
        settings = VtcSettings(locality=Locality(quantum) if quantum else None)
        self._queue = Vtc(settings, MovingAverage())
        self._rng, self._chance = random.Random(seed), random.Random(seed + 1)
        self._engines = {EngineId(f"e{i}"): Engine(EngineId(f"e{i}")) for i in range(n_engines)}
        self._turns: dict[TicketId, Turn] = {}
        self._n_turns, self._n_sent, self._n_started = n_turns, 0, 0
        self._service: defaultdict[TenantId, float] = defaultdict(float)
        self._gap = GapMeter()
        self._thinking: list[tuple[float, TicketId, Turn]] = []
        self._idle_s = 0.0
        self._prompt_tokens = self._cached_tokens = self._wrong_tokens = 0
        tenants = [TenantId(f"t{i}") for i in range(_TENANTS)]
        self._systems = {tenant: self._say(_SYSTEM_TOKENS) for tenant in tenants}
        for tenant in tenants:
            for _ in range(round(use * _SEATS * n_engines / _TENANTS)):
                self._open(tenant)

    def run(self) -> Result:
        """Plays until as many turns have started as are counted."""
        while self._n_started < self._n_turns:
            now_s = self._now_s()
            while self._thinking and self._thinking[0][0] <= now_s:
                self._go_on(heapq.heappop(self._thinking)[2])
            while (admission := self._queue.admit(self._place, 0.0)) is not None:
                self._start(self._turns[admission.request.ticket], admission.fit)
            for engine in self._engines.values():
                self._step(engine)
            self._idle_s += 0.0 if any(e.running for e in self._engines.values()) else 0.1
            self._gap.observe(self._service, self._queue.backlogged())
        tokens = [engine.tokens for engine in self._engines.values()]
        return Result(
            self._cached_tokens / self._prompt_tokens,
            self._wrong_tokens / self._prompt_tokens,
            max(tokens) * len(tokens) / sum(tokens),
            self._gap.worst,
            sum(engine.busy_s for engine in self._engines.values()) / sum(tokens) * 1000,
        )

    def _now_s(self) -> float:
        """Engines step together; the time is that of the one that has worked most."""
        return self._idle_s + max(engine.busy_s for engine in self._engines.values())

    def _say(self, n_tokens: int) -> list[int]:
        return [self._rng.randrange(50_000) for _ in range(n_tokens)]

    def _open(self, tenant: TenantId) -> None:
        prompt = self._systems[tenant] + self._say(self._rng.randint(*_SAID))
        self._send(tenant, prompt, self._rng.randint(*_TURNS))

    def _send(self, tenant: TenantId, prompt: list[int], turns_left: int) -> None:
        self._n_sent += 1
        ticket = TicketId(f"{self._n_sent:06}")
        marks = split_marks(mark_prompt(prompt, tenant))
        turn = Turn(ticket, tenant, prompt, self._rng.randint(*_ANSWER), turns_left, marks)
        self._turns[ticket] = turn
        self._queue.arrive(Waiting(ticket, tenant, len(prompt), _ANSWER[1]), 0.0)

    def _place(self, request: Waiting) -> Fit | None:
        marks = self._turns[request.ticket].marks
        views = [engine.view(marks) for engine in self._engines.values()]
        chosen = self._choose(views, self._chance)
        return None if chosen is None else Fit(chosen.engine_id, chosen.cached_tokens)

    def _start(self, turn: Turn, fit: Fit) -> None:
        cached = self._engines[fit.engine_id].take(turn)
        self._service[turn.tenant] += turn.uncomputed
        self._n_started += 1
        if self._n_started > _WARM * self._n_turns:
            self._prompt_tokens += len(turn.prompt)
            self._cached_tokens += cached
            self._wrong_tokens += abs(cached - fit.cached_tokens)

    def _step(self, engine: Engine) -> None:
        speaking = [turn for turn in engine.running if not turn.uncomputed]
        ended = engine.step()
        for turn in speaking:
            self._queue.charge(turn.ticket, 1)
            self._service[turn.tenant] += 2.0
        for turn in ended:
            self._queue.finish(turn.ticket, turn.cached)
            due_s = self._now_s() + self._rng.uniform(*_THINKS_S)
            heapq.heappush(self._thinking, (due_s, turn.ticket, turn))

    def _go_on(self, turn: Turn) -> None:
        """Lets the conversation have its next turn, or another begin."""
        del self._turns[turn.ticket]
        if turn.turns_left == 1:
            self._open(turn.tenant)
            return
        said = self._say(turn.answer_tokens) + self._say(self._rng.randint(*_SAID))
        self._send(turn.tenant, turn.prompt + said, turn.turns_left - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cached prompt tokens under ways of routing.")
    parser.add_argument("--quick", action="store_true", help="a quarter of the turns")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    n_turns = 1_000 if options.quick else 4_000
    rows: list[list[str]] = []
    figures: dict[str, Figure] = {}
    for n_engines, use in itertools.product((2, 4, 8), _USES):
        case = f"{n_engines} engines, use {use:g}"
        say(case)
        found = {
            name: Simulation(name, n_engines, use, n_turns, options.seed).run() for name in ROUTINGS
        }
        rows += [_show(f"{case}, {name}", result) for name, result in found.items()]
        ours, load = found["prefix"], found["least loaded"]
        computed = (1 - ours.hit_rate) / (1 - load.hit_rate)
        figures[f"prompt_tokens_computed_beside_least_loaded, {case}"] = Figure(computed, "< 1")
        figures[f"balance, {case}"] = Figure(ours.balance, "<= 1.3")
        figures[f"busy_beside_least_loaded, {case}"] = Figure(ours.busy_s / load.busy_s, "<= 1.02")
    print(describe_run(f"python -m bench.prefix_routing{' --quick' if options.quick else ''}"))
    head = ["case", "hit rate", "misbelief", "busiest / mean", "gap", "busy s / 1,000 tokens"]
    print_table("Where conversations go", head, rows)
    print_figures("prefix_routing", figures, is_quick=options.quick)


def _show(case: str, result: Result) -> list[str]:
    return [
        case,
        f"{result.hit_rate:.3f}",
        f"{result.misbelief:.3f}",
        f"{result.balance:.2f}",
        f"{result.gap:.0f}",
        f"{result.busy_s:.2f}",
    ]


if __name__ == "__main__":
    main()
