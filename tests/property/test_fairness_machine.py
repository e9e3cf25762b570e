"""A router and batching engines with every kind of event, in any order, checked after each."""

from collections import defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from serve_app.messages import EngineId, TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_audit import Record, replay
from serve_app.policy.fairness_bound import Capacity, GapMeter, bound_gap
from serve_app.policy.fairness_options import (
    UNITS,
    Cost,
    Locality,
    MovingAverage,
    NoPrediction,
    Share,
)
from serve_app.policy.fairness_settings import VtcSettings
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Fit

TENANTS = [TenantId(name) for name in "abcd"]
ENGINES = [EngineId("one"), EngineId("two")]
TOKENS_PER_ENGINE = 60
MAX_TOKENS = 20


@dataclass
class Running:
    request: Waiting
    engine: EngineId
    length: int
    produced: int = 0


class FairRouter(RuleBasedStateMachine):
    """No lanes: every request may run on every engine, so the bound on the gap has to hold."""

    lanes: tuple[str, ...] = ("",)

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []
        self.waiting: dict[TicketId, tuple[Waiting, int]] = {}
        self.running: dict[TicketId, Running] = {}
        self.resumed: dict[TicketId, Running] = {}
        self.alive = set(ENGINES)
        self.service: defaultdict[TenantId, float] = defaultdict(float)
        self.meter = GapMeter()
        self.now_s = 0.0
        self.n_sent = 0

    @initialize(
        weights=st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=4, max_size=4),
        predicts=st.booleans(),
        quantum=st.sampled_from([0.0, 30.0]),
        burst=st.sampled_from([0.0, 50.0]),
        credit=st.sampled_from([None, 10_000.0]),
    )
    def open(
        self,
        weights: list[float],
        predicts: bool,
        quantum: float,
        burst: float,
        credit: float | None,
    ) -> None:
        self.weights = dict(zip(TENANTS, weights, strict=True))
        self.predicts = predicts
        self.settings = VtcSettings(
            locality=Locality(quantum) if quantum else None, burst=burst, max_credit=credit
        )
        self.quantum, self.burst = quantum, burst
        self.queue = self.make_queue()

    def make_queue(self) -> Vtc:
        return Vtc(
            self.settings,
            MovingAverage() if self.predicts else NoPrediction(),
            {tenant: Share(weight) for tenant, weight in self.weights.items()},
            self.records.append,
        )

    @rule(
        tenant=st.sampled_from(TENANTS),
        n=st.integers(1, 4),
        prompt=st.integers(1, MAX_TOKENS),
        length=st.integers(1, MAX_TOKENS),
        spare=st.integers(0, MAX_TOKENS),
        data=st.data(),
    )
    def arrive(
        self, tenant: TenantId, n: int, prompt: int, length: int, spare: int, data: st.DataObject
    ) -> None:
        for _ in range(n):
            self.n_sent += 1
            ticket = TicketId(f"{self.n_sent:04}")
            limit = min(length + spare, MAX_TOKENS)
            lane = data.draw(st.sampled_from(self.lanes))
            request = Waiting(ticket, tenant, prompt, limit, lane)
            self.waiting[ticket] = request, length
            assert self.queue.arrive(request, self.now_s) is None
            self.observe()
        self.dispatch()

    @precondition(lambda self: self.running)
    @rule(n=st.integers(1, 5))
    def step(self, n: int) -> None:
        self.now_s += 0.05
        for ticket, one in list(self.running.items()):
            tokens = min(n, one.length - one.produced)
            one.produced += tokens
            self.queue.charge(ticket, tokens)
            self.service[one.request.tenant] += 2 * tokens / self.weights[one.request.tenant]
            if one.produced == one.length:
                self.queue.finish(ticket)
                del self.running[ticket]
        self.observe()
        self.dispatch()

    @precondition(lambda self: self.waiting or self.running or self.resumed)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        known = sorted(self.waiting | self.running | self.resumed)
        ticket = data.draw(st.sampled_from(known))
        assert self.queue.abort(ticket)
        for where in (self.waiting, self.running, self.resumed):
            where.pop(ticket, None)
        self.queue.charge(ticket, 3)
        assert not self.queue.abort(ticket)
        self.observe()
        self.dispatch()

    @rule(engine=st.sampled_from(ENGINES))
    def lose_or_gain_engine(self, engine: EngineId) -> None:
        if engine not in self.alive:
            self.alive.add(engine)
        else:
            self.alive.discard(engine)
            for ticket, one in list(self.running.items()):
                if one.engine == engine:
                    self.resumed[ticket] = self.running.pop(ticket)
                    self.queue.requeue(ticket)
        self.dispatch()

    @rule()
    def die_and_restore(self) -> None:
        saved, before = self.queue.snapshot(), len(self.queue)
        self.queue = self.make_queue()
        self.queue.restore(saved)
        assert len(self.queue) == before
        assert self.queue.snapshot() == saved

    @precondition(lambda self: not self.resumed)
    @rule(data=st.data())
    def die_and_come_back(self, data: st.DataObject) -> None:
        """The next router is told what runs and what waits, by gateways in any order."""
        saved, counters = self.queue.snapshot(holds_waiting=False), self.queue.counters()
        self.queue = self.make_queue()
        self.queue.restore(saved)
        for one in self.running.values():
            self.queue.adopt(one.request, one.produced, self.now_s)
        for ticket in data.draw(st.permutations(sorted(self.waiting))):
            assert self.queue.arrive(self.waiting[ticket][0], self.now_s) is None
        assert self.queue.counters() == counters, "return_lifts_nobody"
        self.queue.stop_expecting()

    def place(self, request: Waiting) -> Fit | None:
        for engine in sorted(self.alive):
            held = sum(
                one.request.prompt_tokens + one.request.max_tokens
                for one in (*self.running.values(), *self.resumed.values())
                if one.engine == engine and one.request.ticket != request.ticket
            )
            if held + 2 * MAX_TOKENS <= TOKENS_PER_ENGINE and self.may_run(request, engine):
                return Fit(engine, is_loaded=request.ticket[-1] in "02468")
        return None

    def may_run(self, request: Waiting, engine: EngineId) -> bool:
        return True

    def dispatch(self) -> None:
        while True:
            before = self.queue.counters()
            could_run = [r for r, _ in self.waiting.values() if self.place(r) is not None]
            could_resume = [r for r in self.resumed.values() if self.place(r.request) is not None]
            admission = self.queue.admit(self.place, self.now_s)
            if admission is None:
                assert not could_run, "work_conserving"
                assert not could_resume, "work_conserving"
                return
            ticket, tenant = admission.request.ticket, admission.request.tenant
            after = self.queue.counters()
            changed = {t for t in after if after[t] != before.get(t, after[t])}
            assert changed <= {tenant}, "skipped_pays_nothing"
            assert admission.is_resumed == bool(could_resume), "resumed_go_first"
            if admission.is_resumed:
                assert not changed
                self.running[ticket] = replace(
                    self.resumed.pop(ticket), engine=admission.fit.engine_id
                )
            else:
                request, length = self.waiting.pop(ticket)
                self.running[ticket] = Running(request, admission.fit.engine_id, length)
                self.service[tenant] += request.prompt_tokens / self.weights[tenant]
            self.observe()

    def observe(self) -> None:
        self.meter.observe(self.service, {r.tenant for r, _ in self.waiting.values()})

    @invariant()
    def lengths_agree(self) -> None:
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.waiting) + len(self.resumed)

    @invariant()
    def gap_within_bound(self) -> None:
        if not hasattr(self, "queue"):
            return
        capacity = Capacity(MAX_TOKENS, len(ENGINES) * TOKENS_PER_ENGINE)
        weight = min(self.weights.values())
        bound = bound_gap(Cost(), capacity, slack=self.quantum + self.burst, least_weight=weight)
        assert self.meter.worst <= bound

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.check_charges()
        assert replay(self.records) == []

    def check_charges(self) -> None:
        """The sum of all changes of counters but for lifts is the price of the tokens."""
        for ticket in list(self.queue._tickets):
            self.queue.abort(ticket)
        assert self.queue._refundable == 0, "refund_exact"
        assert all(
            account.ahead == 0 and account.is_idle
            for tier in self.queue._tiers.values()
            for account in tier.accounts.values()
        )


class FairRouterWithLanes(FairRouter):
    """Some requests may run on one engine only. The gap is not bounded, everything else holds."""

    lanes = ("", "one", "two")

    def may_run(self, request: Waiting, engine: EngineId) -> bool:
        return request.lane in ("", engine)

    @invariant()
    def gap_within_bound(self) -> None:
        pass


class FairRouterWithLoads(FairRouterWithLanes):
    """Adapters are loaded for anybody at any time: who waits, runs, is away, or was never here."""

    @rule(tenant=st.sampled_from([*TENANTS, TenantId("e")]), n_tokens=st.integers(0, 40))
    def load(self, tenant: TenantId, n_tokens: int) -> None:
        before = self.queue.counters()
        self.queue.charge_load(tenant, "", n_tokens)
        after = self.queue.counters()
        assert after.keys() - before.keys() <= {tenant}
        assert all(after[other] == before[other] for other in before if other != tenant)
        price = round(2 * n_tokens * UNITS / self.weights.get(tenant, 1.0))
        assert after.get(tenant, 0) >= before.get(tenant, 0) + price, "load_is_paid_once"
        self.dispatch()


TestFairRouter = FairRouter.TestCase
TestFairRouter.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFairRouterWithLoads = FairRouterWithLoads.TestCase
TestFairRouterWithLoads.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFairRouterWithLanes = FairRouterWithLanes.TestCase
TestFairRouterWithLanes.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_units_divide_the_usual_weights() -> None:
    assert all(Fraction(UNITS, weight).denominator == 1 for weight in (1, 2, 4, 5, 8, 10))
