"""Turns in a cell, where other cells serve the same tenants."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_audit import Record, replay
from serve_app.policy.fairness_bound import Capacity, bound_gap
from serve_app.policy.fairness_options import UNITS, Cost, NoPrediction
from serve_app.policy.fairness_settings import to_units
from serve_app.policy.queueing import Waiting
from tests.support.batch_engine import BatchEngine, always, make_request

X, Y = TenantId("x"), TenantId("y")
_SEATS, _TOKENS = 8, 10


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 500)), max_size=20),
    st.integers(0, 300),
    st.booleans(),
)
def test_elsewhere_is_bounded(
    charges: list[tuple[str, int]], most_ahead: int, y_waits: bool
) -> None:
    records: list[Record] = []
    queue = Vtc(audit=records.append)
    queue.take_served()
    waiting = "xy" if y_waits else "x"
    for tenant in waiting:
        queue.arrive(make_request(f"{tenant}0", tenant), 0.0)
    for tenant, service in charges:
        queue.charge_elsewhere(TenantId(tenant), service, most_ahead)
        counters = queue.counters()
        least = min(counters[TenantId(t)] for t in waiting)
        assert max(counters.values()) <= least + 2 * to_units(most_ahead)
    assert not replay(records)
    assert queue.take_served() == {}


class Cells:
    """Two cells whose queues tell one another, every so many steps, what they have served."""

    def __init__(self, every: int, most_ahead: float) -> None:
        self.queues = [Vtc(), Vtc()]
        self.engines = [BatchEngine(queue, seats=_SEATS) for queue in self.queues]
        for queue in self.queues:
            queue.take_served()
        self.every, self.most_ahead = every, most_ahead
        self.most_at_once = 0.0

    def run(self, steps: int) -> float:
        """Returns the greatest difference of service there was since the start."""
        worst = 0.0
        for i in range(steps):
            for engine in self.engines:
                engine.step()
            if i % self.every == 0:
                self.exchange()
            worst = max(worst, abs(self.service("x") - self.service("y")))
        return worst

    def exchange(self) -> None:
        for one, other in ((0, 1), (1, 0)):
            for tenant, more in self.queues[one].take_served().items():
                self.most_at_once = max(self.most_at_once, more)
                self.queues[other].charge_elsewhere(tenant, more, self.most_ahead)

    def service(self, tenant: str) -> float:
        return sum(engine.service[tenant] for engine in self.engines)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40))
def test_who_is_in_one_cell_gets_as_much_as_who_is_in_all(every: int) -> None:
    cells = Cells(every, 1e6)
    for _ in range(700):
        cells.engines[0].send("x", _TOKENS, _TOKENS)
        for engine in cells.engines:
            engine.send("y", _TOKENS, _TOKENS)
    worst = cells.run(600)
    capacity = Capacity(_TOKENS, _SEATS * 2 * _TOKENS)
    assert cells.queues[0].backlogged() == {X, Y}
    assert worst <= bound_gap(Cost(), capacity) + 2 * cells.most_at_once


def test_without_an_exchange_who_is_in_all_cells_gets_three_times_as_much() -> None:
    cells = Cells(10_000, 1e6)
    for _ in range(700):
        cells.engines[0].send("x", _TOKENS, _TOKENS)
        for engine in cells.engines:
            engine.send("y", _TOKENS, _TOKENS)
    cells.run(600)
    assert 2.7 <= cells.service("y") / cells.service("x") <= 3.3


def test_what_was_served_elsewhere_long_ago_keeps_nobody_waiting_for_long() -> None:
    queue = Vtc()
    for i in range(60):
        queue.arrive(make_request(f"x{i:02}", "x"), 0.0)
        queue.arrive(make_request(f"y{i:02}", "y"), 0.0)
    queue.charge_elsewhere(Y, 1e9, 100.0)
    order = []
    for _ in range(40):
        admission = queue.admit(always, 0.0)
        assert admission is not None
        order.append(admission.request.tenant)
    assert order.index(Y) == 11  # ten turns of ten tokens are a hundred
    assert abs(order[11:].count(X) - order[11:].count(Y)) <= 1
    assert queue.counters()[Y] - queue.counters()[X] <= 10 * UNITS


class Ten(NoPrediction):
    """Guesses ten tokens."""

    def predict(self, request: Waiting) -> int:
        return 10


def test_service_is_counted_with_what_is_predicted_and_without_what_is_given_back() -> None:
    queue = Vtc(predictor=Ten())
    queue.take_served()
    queue.arrive(make_request("t", "x", 5), 0.0)
    admission = queue.admit(always, 0.0)
    assert admission is not None
    assert queue.take_served() == {X: 25.0}
    queue.charge(admission.request.ticket, 3)
    queue.finish(admission.request.ticket)
    assert queue.take_served() == {X: -14.0}


_comings = st.tuples(st.integers(0, 30), st.integers(1, 50), st.integers(0, 20), st.booleans())


@given(st.lists(_comings, max_size=30))
def test_served_is_told_once(comings: list[tuple[int, int, int, bool]]) -> None:
    """Tenants come, are served and go; now and then it is asked what they got."""
    queue, told = Vtc(predictor=Ten()), Counter[TenantId]()
    queue.take_served()
    paid, since = Counter[TenantId](), set[TenantId]()
    for i, (number, prompt, output, is_asked) in enumerate(comings):
        tenant = TenantId(f"t{number}")
        queue.arrive(make_request(str(i), tenant, prompt), 0.0)
        admission = queue.admit(always, 0.0)
        assert admission is not None
        queue.charge(admission.request.ticket, output)
        queue.finish(admission.request.ticket)
        queue.charge_load(tenant, "m", 1.0)
        paid[tenant] += prompt + 2 * output + 2
        since.add(tenant)
        if is_asked:
            taken = queue.take_served()
            assert taken.keys() == since
            told.update(taken)
            since.clear()
    told.update(queue.take_served())
    assert told == paid
    assert queue.take_served() == {}


def test_nothing_is_kept_of_what_tenants_were_served_where_nobody_asks() -> None:
    queue = Vtc()
    queue.charge_load(X, "m", 5.0)
    assert queue.take_served() == {}
    queue.charge_load(X, "m", 5.0)
    assert queue.take_served() == {X: 10.0}
