"""A router and its engines as a discrete-event simulation, token by token.

The engines are models (`bench.sim_engine`). The router is real: the policy classes that serve.

What differs from the platform is only where time goes: messages take none, except that gateways may
report produced tokens late, every `charge_every_s`, each at its own phase.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bench.sim_engine import EngineModel, Job, SimEngine, SimRequest
from serve_app.messages import TicketId
from serve_app.names import TenantId
from serve_app.policy.express import Holder, may_go_beyond
from serve_app.policy.fairness import Vtc
from serve_app.policy.queueing import Waiting
from serve_app.policy.routing import EngineView
from serve_app.policy.turns import Fit, Later, TurnOrder


@dataclass(frozen=True)
class Platform:
    """What surrounds the queue."""

    model: EngineModel = field(default_factory=EngineModel)
    engines: int = 1
    gateways: int = 1
    passing: float | None = 0.0
    burst: float = 0.0
    """Both as in `VtcSettings`."""
    window: int | None = None
    """Requests handed to an engine at a time; None hands over just what can start."""
    preempts: bool = False
    """As in the settings of fairness."""
    charge_every_s: float = 0.0
    """How often a gateway reports produced tokens; 0 is at once."""
    pins: Mapping[str, int] = field(default_factory=dict)
    """The only engine that runs a lane's requests; others run anywhere."""


@dataclass
class Run:
    """What happened."""

    jobs: list[Job]
    tenants: list[TenantId]
    gap: float
    """Greatest difference of weighted service of two tenants over any time both were backlogged."""
    uncharged_tokens: int
    """Most tokens that were produced and not yet reported."""
    in_flight_tokens: int
    """Most tokens that all requests handed over could hold."""
    decisions: int = 0
    end_s: float = 0.0


@dataclass
class GapArrays:
    """`GapMeter` for few tenants and many events."""

    n: int
    worst: float = 0.0
    low: npt.NDArray[np.float64] = field(init=False)
    high: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.low = np.zeros((self.n, self.n))
        self.high = np.zeros((self.n, self.n))

    def observe(self, service: npt.NDArray[np.float64], backlogged: npt.NDArray[np.bool_]) -> None:
        """Takes service so far by tenant, and who waits."""
        ahead = service[:, None] - service[None, :]
        both = backlogged[:, None] & backlogged[None, :]
        self.low = np.where(both, np.minimum(self.low, ahead), ahead)
        self.high = np.where(both, np.maximum(self.high, ahead), ahead)
        self.worst = max(self.worst, float((self.high - self.low).max()))


class Simulation:
    """Runs one workload through one turn order.

    Args:
        order: The policy.
        requests: In the order of their arrival.
        platform: Engines, gateways, window.
        weights: By tenant; 1 for others.
    """

    def __init__(
        self,
        order: TurnOrder,
        requests: Sequence[SimRequest],
        platform: Platform,
        weights: dict[TenantId, float] | None = None,
    ) -> None:
        self.order = order
        self.platform = platform
        self.engines = [SimEngine(str(i), platform.model) for i in range(platform.engines)]
        self.jobs = [
            self._make_job(i, request, i % platform.gateways) for i, request in enumerate(requests)
        ]
        self.by_ticket = {job.waiting.ticket: job for job in self.jobs}
        self.tenants = sorted({request.tenant for request in requests})
        self._index = {tenant: i for i, tenant in enumerate(self.tenants)}
        weights = weights or {}
        self._weights = np.array([weights.get(tenant, 1.0) for tenant in self.tenants])
        self._service = np.zeros(len(self.tenants))
        self._n_waiting = np.zeros(len(self.tenants), dtype=np.int64)
        self._gap = GapArrays(len(self.tenants))
        self._events: list[tuple[float, int, int]] = []
        self._unreported: list[dict[TicketId, Job]] = [{} for _ in range(platform.gateways)]
        every_s = platform.charge_every_s
        self._report_due_s = [
            every_s * (i + 1) / platform.gateways for i in range(platform.gateways)
        ]
        self._n_unreported = 0
        self._newcomer: TicketId | None = None
        self._run = Run(self.jobs, self.tenants, 0.0, 0, 0)

    def run(self, until_s: float) -> Run:
        """Plays everything up to a time."""
        arrivals = iter(self.jobs)
        job = next(arrivals, None)
        while True:
            step_s = self._events[0][0] if self._events else float("inf")
            arrival_s = job.request.arrival_s if job is not None else float("inf")
            now_s = min(step_s, arrival_s)
            if now_s > until_s:
                break
            if job is not None and arrival_s <= step_s:
                self._arrive(job, now_s)
                job = next(arrivals, None)
            else:
                _, _, number = heapq.heappop(self._events)
                self._end_step(self.engines[number], now_s)
            self._report(now_s)
            self._dispatch(now_s)
            self._newcomer = None
        self._run.gap = self._gap.worst
        self._run.end_s = until_s
        return self._run

    def _make_job(self, number: int, request: SimRequest, gateway: int) -> Job:
        # Sizes by powers of two are lanes, so that one which does not fit can be passed by.
        lane = request.lane
        if self.platform.window is None:
            lane += f"/{(request.prompt_tokens + request.output_tokens).bit_length()}"
        waiting = Waiting(
            TicketId(f"{number:06}"),
            request.tenant,
            request.prompt_tokens,
            request.max_tokens,
            lane,
        )
        return Job(request, waiting, gateway)

    def _arrive(self, job: Job, now_s: float) -> None:
        job.is_refused = self.order.arrive(job.waiting, now_s) is not None
        if not job.is_refused:
            self._n_waiting[self._index[job.request.tenant]] += 1
            self._newcomer = job.waiting.ticket

    def _end_step(self, engine: SimEngine, now_s: float) -> None:
        engine.busy_until_s = None
        running = list(engine.running.values())
        ended = engine.end_step(now_s)
        is_late = self.platform.charge_every_s > 0
        for job in running:
            self._service[self._index[job.request.tenant]] += 2.0
            if is_late:
                job.unreported += 1
                self._unreported[job.gateway][job.waiting.ticket] = job
            else:
                self.order.charge(job.waiting.ticket, 1)
        if is_late:
            self._n_unreported += len(running)
            most = max(self._run.uncharged_tokens, self._n_unreported)
            self._run.uncharged_tokens = most
        for job in ended:
            self._report_job(job)
            self.order.finish(job.waiting.ticket)
        self._observe()

    def _report(self, now_s: float) -> None:
        if not self.platform.charge_every_s:
            return
        for i, due_s in enumerate(self._report_due_s):
            if now_s >= due_s:
                for job in list(self._unreported[i].values()):
                    self._report_job(job)
                self._report_due_s[i] = due_s + self.platform.charge_every_s

    def _report_job(self, job: Job) -> None:
        if self._unreported[job.gateway].pop(job.waiting.ticket, None) is not None:
            self.order.charge(job.waiting.ticket, job.unreported)
            self._n_unreported -= job.unreported
            job.unreported = 0

    def _dispatch(self, now_s: float) -> None:
        while (admission := self.order.admit(self._place, now_s)) is not None:
            job = self.by_ticket[admission.request.ticket]
            engine = self.engines[int(admission.fit.engine_id)]
            job.admitted_s = now_s
            engine.hand(job, admission)
            i = self._index[job.request.tenant]
            self._n_waiting[i] -= 1
            self._service[i] += job.request.prompt_tokens
            self._run.decisions += 1
            self._observe()
        for number, engine in enumerate(self.engines):
            if engine.busy_until_s is None:
                self._tell_counters(engine)
                step_s = engine.begin_step()
                if step_s is not None:
                    engine.busy_until_s = now_s + step_s
                    heapq.heappush(self._events, (engine.busy_until_s, number, number))
        held = sum(e.held_tokens + e.handed_tokens for e in self.engines)
        self._run.in_flight_tokens = max(self._run.in_flight_tokens, held)

    def _place(self, request: Waiting) -> Fit | Later | None:
        window = self.platform.window
        job = self.by_ticket[request.ticket]
        tokens, pin = job.held_tokens, self.platform.pins.get(job.request.lane)
        fits = [
            engine
            for number, engine in enumerate(self.engines)
            if pin in (None, number)
            and (engine.could_start(tokens) if window is None else engine.in_flight < window)
        ]
        if not fits and request.ticket == self._newcomer and self.platform.preempts:
            express = self._place_beyond(job)
            if express is not None:
                return express
        if not fits:
            return Later() if window is None else None
        return Fit(min(fits, key=lambda e: (e.in_flight, e.engine_id)).engine_id)

    def _place_beyond(self, job: Job) -> Fit | None:
        """As the router does it."""
        assert isinstance(self.order, Vtc)
        tenant = job.request.tenant
        n_waiting = int(self._n_waiting[self._index[tenant]])
        for engine in self.engines:
            if engine.in_flight >= self._room_beyond(engine):
                continue
            counters = self.order.counters([tenant, *engine.by_tenant])
            others = [
                self._holder(other, n, counters[other])
                for other, n in engine.by_tenant.items()
                if other != tenant
            ]
            newcomer = self._holder(tenant, engine.by_tenant[tenant], counters[tenant])
            if may_go_beyond(newcomer, n_waiting, others):
                return Fit(engine.engine_id, is_express=True)
        return None

    def _room_beyond(self, engine: SimEngine) -> int:
        room = self.platform.window or len(engine.running)
        return EngineView(engine.engine_id, True, 0, max(room, 1)).room_beyond

    def _holder(self, tenant: TenantId, n_places: int, counter: int) -> Holder:
        return Holder(n_places, float(self._weights[self._index[tenant]]), 0, counter)

    def _tell_counters(self, engine: SimEngine) -> None:
        if isinstance(self.order, Vtc):
            engine.turns.synchronise(self.order.counters(engine.by_tenant))

    def _observe(self) -> None:
        self._gap.observe(self._service / self._weights, self._n_waiting > 0)


def measure_capacity(model: EngineModel, prompt_tokens: int, output_tokens: int) -> float:
    """Returns requests per second that an engine ends when it always has more to do."""
    from serve_app.policy.fairness_baselines import FirstCome

    n = 2 * model.kv_tokens * 20 // (prompt_tokens + output_tokens)
    requests = [
        SimRequest(0.0, TenantId("a"), prompt_tokens, output_tokens, output_tokens)
        for _ in range(n)
    ]
    run = Simulation(FirstCome(), requests, Platform(model)).run(1e9)
    ends = sorted(_ends(run.jobs))
    first, last = len(ends) // 4, 3 * len(ends) // 4
    return (last - first) / (ends[last] - ends[first])


def _ends(jobs: Iterable[Job]) -> list[float]:
    return [job.end_s for job in jobs if job.end_s is not None]
