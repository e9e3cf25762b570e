"""What one decision costs the router, whoever and however many wait.

    python -m bench.router            all sizes
    python -m bench.router --quick    a tenth of the decisions

Measures `Vtc` itself, in one process without a network: each decision is followed by what comes
with it on the platform, the arrival of a new request, some charges, and the end of an old one. What
is timed is only `admit`; decisions/s is all of it together. Times are of this thread on its
processor, so that whatever else the machine does stays out of them.
"""

import argparse
import gc
import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.messages import EngineId, TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_baselines import FirstCome
from serve_app.policy.fairness_options import Locality, MovingAverage
from serve_app.policy.fairness_settings import VtcSettings
from serve_app.policy.queueing import Waiting
from serve_app.policy.routing import EngineView, choose_engine
from serve_app.policy.turns import Fit, TurnOrder

_ENGINES = tuple(EngineId(f"engine-{i}") for i in range(4))
_RUNNING = 256
_CHARGES = 8
"""Reports of produced tokens that a router takes between two decisions."""


@dataclass(frozen=True)
class Case:
    """One measured situation."""

    name: str
    make: Callable[[], TurnOrder]
    tenants: int
    waiting: int
    lanes: int = 1
    closed_lanes: int = 0
    """Lanes that have no room in any engine."""


CASES = (
    Case("fcfs, for comparison", FirstCome, 1_000, 10_000),
    Case("vtc", Vtc, 1_000, 10_000),
    Case("vtc, prediction", lambda: Vtc(predictor=MovingAverage()), 1_000, 10_000),
    Case("vtc, 10,000 tenants", lambda: Vtc(predictor=MovingAverage()), 10_000, 20_000),
    Case("vtc, 500 adapters", Vtc, 1_000, 10_000, lanes=500),
    Case("vtc, 500 adapters, 50 full", Vtc, 1_000, 10_000, lanes=500, closed_lanes=50),
    Case(
        "vtc, locality of 16",
        lambda: Vtc(VtcSettings(locality=Locality(1000.0))),
        1_000,
        10_000,
        lanes=50,
    ),
)


@dataclass(frozen=True)
class Cost:
    """What was measured. Times in µs."""

    p50_us: float
    p99_us: float
    max_us: float
    decisions_per_s: float


class Load:
    """Keeps a queue at its size: what is admitted is replaced, the oldest running ends."""

    def __init__(self, case: Case, rng: random.Random) -> None:
        self.order = case.make()
        self._case = case
        self._rng = rng
        self._n_sent = 0
        self._running: deque[TicketId] = deque()
        self._views = [
            EngineView(e, is_ready=True, in_flight=i, room=64) for i, e in enumerate(_ENGINES)
        ]
        for _ in range(case.waiting):
            self._send()

    def measure(self, decisions: int) -> Cost:
        """Takes so many decisions."""
        for _ in range(_RUNNING):
            self._decide()
        times_ns: list[int] = []
        gc.collect()
        started_s = time.thread_time()
        for _ in range(decisions):
            times_ns.append(self._decide())
            self._end_oldest()
            self._charge_some()
            self._send()
        cpu_s = time.thread_time() - started_s
        times_ns.sort()
        return Cost(
            times_ns[decisions // 2] / 1000,
            times_ns[decisions * 99 // 100] / 1000,
            times_ns[-1] / 1000,
            decisions / cpu_s,
        )

    def _decide(self) -> int:
        started_ns = time.thread_time_ns()
        admission = self.order.admit(self._place, 0.0)
        took_ns = time.thread_time_ns() - started_ns
        assert admission is not None
        self._running.append(admission.request.ticket)
        return took_ns

    def _place(self, request: Waiting) -> Fit | None:
        if self._case.closed_lanes and int(request.lane) < self._case.closed_lanes:
            return None
        engine = choose_engine(self._views)
        return None if engine is None else Fit(engine.engine_id)

    def _end_oldest(self) -> None:
        self.order.finish(self._running.popleft())

    def _charge_some(self) -> None:
        for ticket in self._rng.sample(self._running, _CHARGES):
            self.order.charge(ticket, 8)

    def _send(self) -> None:
        self._n_sent += 1
        tenant = TenantId(f"tenant-{self._rng.randrange(self._case.tenants):05}")
        lane = str(self._rng.randrange(self._case.lanes))
        prompt_tokens = self._rng.randrange(1, 1000)
        ticket = TicketId(f"{self._n_sent:08}")
        self.order.arrive(Waiting(ticket, tenant, prompt_tokens, 256, lane), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="What one decision costs the router.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the decisions")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(sys.argv[1:])
    decisions = 2_000 if args.quick else 20_000
    print(f"{'case':28} {'p50 µs':>8} {'p99 µs':>8} {'max µs':>9} {'decisions/s':>12}")
    costs: dict[str, Cost] = {}
    for case in CASES:
        cost = costs[case.name] = Load(case, random.Random(args.seed)).measure(decisions)
        print(
            f"{case.name:28} {cost.p50_us:8.1f} {cost.p99_us:8.1f} {cost.max_us:9.1f} "
            f"{cost.decisions_per_s:12.0f}",
            flush=True,
        )
    print(json.dumps({"bench": "router", "quick": args.quick, "figures": judge(costs)}))


def judge(costs: dict[str, Cost]) -> dict[str, dict[str, object]]:
    """Returns the figures of the last line."""
    plain, many = costs["vtc, prediction"], costs["vtc, 10,000 tenants"]
    slowest = min(cost.decisions_per_s for cost in costs.values())
    figures: Sequence[tuple[str, float, str, bool]] = (
        ("p50_ms, 10,000 waiting", plain.p50_us / 1000, "<= 1", plain.p50_us <= 1000),
        ("decisions_per_s, slowest case", slowest, ">= 2000", slowest >= 2000),
        ("p50_us, 10,000 tenants", many.p50_us, "< 50", many.p50_us < 50),
    )
    return {
        name: {"value": round(value, 4), "target": target, "ok": ok}
        for name, value, target, ok in figures
    }


if __name__ == "__main__":
    main()
