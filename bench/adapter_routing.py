"""Loads of adapters under routing by residency, by load alone, and at random: a simulation.

    python -m bench.adapter_routing            20,000 requests a case
    python -m bench.adapter_routing --quick    2,000

The real router with a clock of its own, and engines that keep adapters in memory and stop for each
load (`bench.sim_adapters`). Clients that ask again at once, for adapters of a power-law popularity
(S-LoRA's: alpha 1 is uniform, less is more skewed). Two kinds of engines: one with a slot for each
running request, as is the default, and one with half as many, whose slots are what runs out.
Seeded; no model.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.adapter_load import Draw, draw_trace
from bench.adapter_routings import OURS, ROUTINGS, routed
from bench.load import percentiles
from bench.report import Figure, describe_run, print_figures, print_table, say
from bench.sim_adapters import Build, SimEngine
from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import AdapterRef, Grant, Leave, Prepare, Refuse, Resume, TicketId
from serve_app.names import ModelName, TenantId
from tests.support.router_post import FakeClock, FakeMailbox, enqueue
from tests.support.settings import write_args

_ADAPTERS = 200
_STEPS = (16, 16)
_CLIENTS = 12
"""Of each engine."""
_TICK_S = 0.01
_REPORT_S = 0.5
_MODEL, _TENANT, _GATEWAY = ModelName("tiny"), TenantId("t"), b"gateway"
BUILDS = {"a slot a place": Build(slots=16), "half as many slots": Build(slots=8)}
"""Kinds of engines."""


@dataclass(frozen=True)
class Result:
    """What one run came to."""

    loads_per_1000: float
    balance: float
    """Of the busiest engine's tokens to the mean."""
    tokens_per_s: float
    ttfts_s: Sequence[float]


class Simulation:
    """A router, its engines and their clients.

    Args:
        n_engines: How many.
        build: What they are like.
    """

    def __init__(self, n_engines: int, build: Build) -> None:
        self._post, self._clock = FakeMailbox(), FakeClock()
        limits = {"max_waiting": 100_000, "max_wait_s": 86_400.0}
        settings = parse_settings(write_args(limits=limits))
        self._router = Router(_MODEL, settings, self._post, self._clock)
        self._router.handle(_GATEWAY, Resume(model=_MODEL))
        self._engines = {
            name: SimEngine(name, _MODEL, build, self._clock, self._end, self._begin, self._hear)
            for name in (f"e{i}" for i in range(n_engines))
        }
        self._ended: list[TicketId] = []
        self._sent_s: dict[TicketId, float] = {}
        self._ttfts_s: list[float] = []
        self._draws: dict[TicketId, Draw] = {}

    def run(self, trace: Sequence[Draw], n_clients: int) -> Result:
        """Serves a trace, so many requests at a time."""
        began_s, before = self._clock.now_s, self._loads()
        tokens_before = {engine.name: engine.tokens for engine in self._engines.values()}
        self._ttfts_s = []
        left = iter(trace)
        reported_s = -_REPORT_S
        for draw in itertools.islice(left, n_clients):
            self._send(draw)
        while self._draws:
            if self._clock.now_s >= reported_s + _REPORT_S:
                reported_s = self._clock.now_s
                for engine in self._engines.values():
                    self._hear(engine)
                self._router.look_around()
            self._deliver()
            for engine in self._engines.values():
                engine.advance()
            self._take_ended(left)
            self._deliver()
            self._clock.pass_s(_TICK_S)
        served = {
            engine.name: engine.tokens - tokens_before[engine.name]
            for engine in self._engines.values()
        }
        return Result(
            1000 * (self._loads() - before) / len(trace),
            max(served.values()) * len(served) / sum(served.values()),
            sum(served.values()) / (self._clock.now_s - began_s),
            self._ttfts_s,
        )

    def _loads(self) -> int:
        return sum(engine.loads for engine in self._engines.values())

    def _send(self, draw: Draw) -> None:
        ticket = TicketId(f"r{len(self._sent_s)}")
        self._draws[ticket] = draw
        self._sent_s[ticket] = self._clock.now_s
        ref = _ref_of(draw)
        self._router.handle(_GATEWAY, enqueue(str(ticket), _TENANT, _STEPS[1], adapter=ref))

    def _hear(self, engine: SimEngine) -> None:
        self._router.handle(engine.name.encode(), engine.report())

    def _begin(self, ticket: TicketId) -> None:
        self._ttfts_s.append(self._clock.now_s - self._sent_s[ticket])

    def _end(self, ticket: TicketId) -> None:
        self._ended.append(ticket)

    def _take_ended(self, left: Iterator[Draw]) -> None:
        ended, self._ended = self._ended, []
        for ticket in ended:
            del self._draws[ticket]
            self._router.handle(_GATEWAY, Leave(ticket, True, _STEPS[1], 0))
            draw = next(left, None)
            if draw is not None:
                self._send(draw)

    def _deliver(self) -> None:
        for mail in self._post.take(_GATEWAY):
            assert not isinstance(mail, Refuse)
            if isinstance(mail, Grant):
                draw = self._draws[mail.ticket]
                engine = self._engines[str(mail.engine_id)]
                engine.accept(mail.ticket, _ref_of(draw), _TENANT, draw.output_tokens)
        for engine in self._engines.values():
            for order in self._post.take(engine.name.encode()):
                if isinstance(order, Prepare):
                    engine.prepare(order.ref, order.tenant)


def _ref_of(draw: Draw) -> AdapterRef:
    assert draw.adapter is not None
    number = draw.adapter + 1
    return AdapterRef(number, f"{_MODEL}:{number}", _MODEL, "0" * 64, "file:///a")


def simulate(
    routing: str, n_engines: int, build: Build, alpha: float, n_requests: int, seed: int
) -> Result:
    """Serves a trace by one way of routing, after another one that fills the memories."""
    with routed(routing):
        simulation = Simulation(n_engines, build)
    warm_up = draw_trace(_ADAPTERS, 200 * n_engines, alpha, f"{seed}-warm", _STEPS)
    simulation.run(warm_up, _CLIENTS * n_engines)
    trace = draw_trace(_ADAPTERS, n_requests, alpha, str(seed), _STEPS)
    return simulation.run(trace, _CLIENTS * n_engines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Loads of adapters under three ways of routing.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    n_requests = 2_000 if options.quick else 20_000
    rows, figures = [], {}
    for n_engines, (kind, build), alpha in itertools.product(
        (2, 4), BUILDS.items(), (1.0, 0.6, 0.3)
    ):
        case = f"{n_engines} engines, {kind}, alpha {alpha:g}"
        found = {
            name: simulate(name, n_engines, build, alpha, n_requests, options.seed)
            for name in ROUTINGS
        }
        say(case)
        for name, result in found.items():
            ttft = percentiles(result.ttfts_s)
            numbers = [f"{result.loads_per_1000:.0f}", f"{result.balance:.2f}"]
            numbers += [f"{result.tokens_per_s:.0f}"]
            numbers += [f"{1000 * ttft[p]:.0f}" for p in ("p50", "p99")]
            rows.append([f"{case}, {name}", *numbers])
        ours = found[OURS]
        for name in found.keys() - {OURS}:
            ratio = ours.loads_per_1000 / found[name].loads_per_1000
            figures[f"loads_beside_{name}, {case}"] = Figure(ratio, "< 1")
        figures[f"balance, {case}"] = Figure(ours.balance, "<= 1.3")
        rate = ours.tokens_per_s / found["least loaded"].tokens_per_s
        figures[f"tokens_per_s_beside_least_loaded, {case}"] = Figure(rate, ">= 1")
    print(describe_run(f"python -m bench.adapter_routing{' --quick' if options.quick else ''}"))
    head = ["case", "loads per 1,000", "busiest / mean", "tokens/s", "TTFT p50, ms", "p99"]
    print_table("Where requests with adapters go", head, rows)
    print_figures("adapter_routing", figures, is_quick=options.quick)


if __name__ == "__main__":
    main()
