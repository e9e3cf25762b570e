from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.names import TenantId
from serve_app.policy.fairness_baselines import (
    ByRequest,
    FirstCome,
    OneLine,
    RequestCap,
    RoundRobin,
    least_counter_first,
)
from serve_app.policy.turns import TurnOrder
from tests.support.batch_engine import BatchEngine, always, make_request

MAKERS: list[Callable[[], TurnOrder]] = [
    FirstCome,
    RoundRobin,
    least_counter_first,
    lambda: RequestCap(3),
    OneLine,
    ByRequest,
]
steps = st.lists(
    st.tuples(st.sampled_from(["arrive", "admit", "abort", "lose"]), st.sampled_from("abc")),
    max_size=60,
)


@pytest.mark.parametrize("make", MAKERS)
@given(steps=steps)
def test_baselines_keep_every_request(
    make: Callable[[], TurnOrder], steps: list[tuple[str, str]]
) -> None:
    order = make()
    waiting, running = list[str](), list[str]()
    for n, (what, tenant) in enumerate(steps):
        if what == "arrive":
            if order.arrive(make_request(str(n), tenant), float(n)) is None:
                waiting.append(str(n))
        elif what == "admit":
            admission = order.admit(always, float(n))
            assert (admission is None) == (not waiting)
            if admission is not None:
                waiting.remove(admission.request.ticket)
                running.append(admission.request.ticket)
        elif what == "abort" and waiting:
            assert order.abort(make_request(waiting.pop(), "").ticket)
        elif what == "lose" and running:
            waiting.insert(0, running.pop())
            order.requeue(make_request(waiting[0], "").ticket)
        assert len(order) == len(waiting)


@settings(deadline=None)
@given(st.lists(st.floats(0, 300), max_size=60), st.integers(1, 5))
def test_cap_is_kept(times_s: list[float], cap: int) -> None:
    order = RequestCap(cap)
    admitted: Counter[int] = Counter()
    for n, now_s in enumerate(sorted(times_s)):
        refusal = order.arrive(make_request(str(n), "a"), now_s)
        if refusal is None:
            admitted[int(now_s // 60)] += 1
        else:
            assert admitted[int(now_s // 60)] == cap
            assert (now_s + refusal.retry_after_s) / 60 == pytest.approx(now_s // 60 + 1)
    assert all(n <= cap for n in admitted.values())


def test_first_come_serves_whoever_sends_more() -> None:
    engine = BatchEngine(FirstCome())
    for _ in range(300):
        engine.send("a")
        engine.send("b")
        engine.send("b")
    engine.run(200)
    assert engine.service["b"] / engine.service["a"] == pytest.approx(2, abs=0.1)


@given(st.lists(st.sampled_from("abc"), max_size=20))
def test_one_line_serves_in_the_order_of_arrival(tenants: list[str]) -> None:
    order = OneLine()
    for n, tenant in enumerate(tenants):
        order.arrive(make_request(str(n), tenant), float(n))
    admitted = [order.admit(always, 0.0) for _ in tenants]
    assert [a and a.request.ticket for a in admitted] == [str(n) for n in range(len(tenants))]


def test_by_request_takes_turns_however_long_requests_are() -> None:
    order = ByRequest()
    for n in range(10):
        order.arrive(make_request(f"a{n}", "a", 10, 10), 0.0)
        order.arrive(make_request(f"b{n}", "b", 500, 400), 0.0)
    for n in range(1, 11):
        admission = order.admit(always, 0.0)
        assert admission is not None
        order.charge(admission.request.ticket, 300)
        if n % 2 == 0:
            counts = order.counters()
            assert counts[TenantId("a")] == counts[TenantId("b")]


def test_round_robin_serves_longer_requests_more() -> None:
    engine = BatchEngine(RoundRobin())
    for _ in range(300):
        engine.send("a", 10, 10)
        engine.send("b", 10, 40)
    engine.run(400)
    assert engine.service["b"] / engine.service["a"] == pytest.approx(3, abs=0.3)


def test_least_counter_first_lets_who_was_away_take_everything() -> None:
    engine = BatchEngine(least_counter_first())
    for _ in range(600):
        engine.send("a")
    engine.run(200)
    before = engine.service["a"]
    for _ in range(100):
        engine.send("b")
    engine.run(60)
    assert engine.service["a"] - before < 0.2 * engine.service["b"]
