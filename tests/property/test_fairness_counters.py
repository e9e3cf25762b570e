"""How counters rise, how those of newcomers start, and whose turn it is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_audit import Record, replay
from serve_app.policy.fairness_options import (
    UNITS,
    Locality,
    MovingAverage,
)
from serve_app.policy.fairness_settings import VtcSettings
from serve_app.policy.fairness_ticket import SavedTier, Snapshot
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Fit, Later
from tests.support.batch_engine import ENGINE, BatchEngine, always, make_request
from tests.support.fair_runs import A, B, C, fresh, histories


@settings(deadline=None)
@given(histories)
def test_lift_never_lowers(history: list[tuple[str, int, int]]) -> None:
    queue = Vtc()
    for n, (tenant, prompt, output) in enumerate(history):
        before = queue.counters()
        queue.arrive(make_request(str(n), tenant, prompt, 100), 0.0)
        after = queue.counters()
        assert all(after[t] >= units for t, units in before.items())
        admission = queue.admit(always, 0.0) if n % 3 else None
        if admission is not None:
            queue.charge(admission.request.ticket, output)


@settings(deadline=None)
@given(histories)
def test_lift_meets_the_waiting(history: list[tuple[str, int, int]]) -> None:
    queue = Vtc()
    for n, (tenant, prompt, output) in enumerate(history):
        waits = queue.backlogged()
        queue.arrive(make_request(str(n), tenant, prompt, 100), 0.0)
        counters = queue.counters()
        if waits and tenant not in waits:
            assert counters[TenantId(tenant)] >= min(counters[t] for t in waits)
        admission = queue.admit(always, 0.0) if n % 3 else None
        if admission is not None:
            queue.charge(admission.request.ticket, output)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 64), st.integers(16, 64), st.sampled_from([1, 7]), st.floats(0, 1))
def test_burst_of_one_who_was_away_gets_half_while_both_wait(
    prompt: int, output: int, n_lengths: int, phase: float
) -> None:
    """What the other has in flight, charged ahead, is served while both wait and counts as such."""
    queue = Vtc(predictor=MovingAverage())
    engine = BatchEngine(queue, seats=20)
    lengths = [output - n % n_lengths * output // 10 for n in range(400)]
    for length in lengths:
        engine.send("busy", prompt, length)
    engine.run(round(output * (3 + phase)))
    before = engine.service["busy"]
    for length in lengths[:60]:
        engine.send("away", prompt, length)
    while {"away", "busy"} <= queue.backlogged():
        engine.step()
    away, busy = engine.service["away"], engine.service["busy"] - before
    assert away / (away + busy) == pytest.approx(0.5, abs=0.03)


@settings(deadline=None)
@given(histories, st.booleans())
def test_dropping_changes_nothing(history: list[tuple[str, int, int]], predicts: bool) -> None:
    """The replay keeps every tenant for ever, and yet agrees with every counter."""
    records: list[Record] = []
    queue = Vtc(predictor=fresh(predicts), audit=records.append)
    running: list[tuple[Waiting, int]] = []
    for n, (tenant, prompt, output) in enumerate(history):
        queue.arrive(make_request(str(n), tenant, prompt, 100), 0.0)
        if n % 4 == 0:
            continue
        while (admission := queue.admit(always, 0.0)) is not None:
            running.append((admission.request, output))
        while len(running) > n % 3:
            request, length = running.pop(0)
            queue.charge(request.ticket, length)
            queue.finish(request.ticket)
    assert replay(records) == []


def test_idle_tenants_are_forgotten() -> None:
    queue = Vtc()
    for n in range(2000):
        queue.arrive(make_request(str(n), f"tenant-{n}"), 0.0)
        queue.admit(always, 0.0)
        queue.charge(make_request(str(n), "").ticket, 5)
        queue.finish(make_request(str(n), "").ticket)
    assert len(queue.counters()) < 20


@settings(deadline=None)
@given(histories)
def test_least_counter_is_next(history: list[tuple[str, int, int]]) -> None:
    queue = Vtc()
    for n, (tenant, prompt, _) in enumerate(history):
        queue.arrive(make_request(str(n), tenant, prompt, 100), 0.0)
    while len(queue):
        counters = queue.counters()
        waits = queue.backlogged()
        admission = queue.admit(always, 0.0)
        assert admission is not None
        tenant = admission.request.tenant
        assert tenant == min(waits, key=lambda t: (counters[t], t))


def test_last_leaver_rule_keeps_a_newcomer_from_starting_at_zero() -> None:
    queue = Vtc()
    for n in range(50):
        request = make_request(f"a{n}", "a", 100, 100)
        queue.arrive(request, 0.0)
        queue.admit(always, 0.0)
        queue.charge(request.ticket, 100)
        queue.finish(request.ticket)
    queue.arrive(make_request("b", "b"), 1.0)
    assert queue.counters()[B] == queue.counters()[A] == 50 * 300 * UNITS


def test_running_tenants_count_when_nobody_waits() -> None:
    """The last leaver has long finished; who runs on has been served far more than it."""
    queue = Vtc()
    for tenant in ("a", "b"):
        queue.arrive(make_request(tenant, tenant, 10, 1000), 0.0)
        queue.admit(always, 0.0)
    queue.finish(make_request("b", "").ticket)
    queue.charge(make_request("a", "").ticket, 1000)
    queue.arrive(make_request("c", "c"), 1.0)
    assert queue.counters()[C] == queue.counters()[A]


@settings(deadline=None)
@given(st.integers(100, 1000))
def test_credit_of_a_tenant_without_room_is_bounded(n: int) -> None:
    """Its engine was away for long; it may not take everything when the engine comes back."""
    queue = Vtc(VtcSettings(max_credit=200.0))
    queue.arrive(make_request("pinned", "pinned", 10, 10, lane="away"), 0.0)
    for i in range(n):
        queue.arrive(make_request(str(i), "busy", 10, 10), 0.0)

    def only_here(request: Waiting) -> Fit | None:
        return None if request.lane == "away" else Fit(ENGINE)

    while queue.admit(only_here, 0.0) is not None:
        pass
    queue.arrive(make_request("new", "new"), 0.0)
    queue.admit(always, 0.0)
    behind = queue.counters()[TenantId("busy")] - queue.counters()[TenantId("pinned")]
    assert behind <= 200 * UNITS


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60))
def test_passing_is_bounded(passing: int, big: int) -> None:
    """Small requests pass one that is too big for the room left until they have had `passing`."""
    queue = Vtc(VtcSettings(passing=float(passing)))
    queue.arrive(make_request("big", "a", 100 + big, 10, lane="big"), 0.0)
    for n in range(100):
        queue.arrive(make_request(f"s{n}", "b", 10, 10, lane="small"), 0.0)

    def too_small(request: Waiting) -> Fit | Later:
        return Later() if request.lane == "big" else Fit(ENGINE)

    n_passed = 0
    while queue.admit(too_small, 0.0) is not None:
        n_passed += 1
    assert n_passed == min(passing // 10 + 1, 100)
    admission = queue.admit(always, 0.0)
    assert admission is not None
    assert admission.request.tenant == A


@settings(deadline=None)
@given(st.integers(1, 20))
def test_new_requests_do_not_pass_one_to_be_resumed(n: int) -> None:
    queue = Vtc(VtcSettings(passing=None))
    big = make_request("big", "a", 1000, 10)
    queue.arrive(big, 0.0)
    queue.admit(always, 0.0)
    queue.requeue(big.ticket)
    for i in range(n):
        queue.arrive(make_request(f"s{i}", "b"), 0.0)

    def too_small(request: Waiting) -> Fit | Later:
        return Fit(ENGINE) if request.prompt_tokens < 1000 else Later()

    assert queue.admit(too_small, 0.0) is None
    admission = queue.admit(always, 0.0)
    assert admission is not None
    assert admission.request == big


@settings(deadline=None)
@given(st.integers(0, 500))
def test_burst_is_what_an_absent_tenant_has_saved(burst: int) -> None:
    queue = Vtc(VtcSettings(burst=float(burst)))
    for n in range(30):
        queue.arrive(make_request(f"a{n}", "a", 10, 10), 0.0)
    for _ in range(25):
        queue.admit(always, 0.0)
    queue.arrive(make_request("b", "b"), 0.0)
    assert queue.counters()[B] == max(250 - burst, 0) * UNITS


@settings(deadline=None)
@given(st.integers(1, 400), st.lists(st.integers(0, 100), min_size=8, max_size=8))
def test_locality_prefers_the_longest_prefix_within_the_quantum(
    quantum: int, cached: list[int]
) -> None:
    queue = Vtc(VtcSettings(locality=Locality(quantum)))
    counters = {TenantId(f"tenant-{i}"): 60 * i * UNITS for i in range(8)}
    tier = SavedTier(counters, last_leaver=None, reached=0, expected=list(counters))
    queue.restore(Snapshot(0, {0: tier}, [], {}, ({}, {})))
    for tenant in counters:
        queue.arrive(make_request(tenant, tenant), 0.0)

    def place(request: Waiting) -> Fit:
        return Fit(ENGINE, cached_tokens=cached[int(request.tenant[-1])])

    admission = queue.admit(place, 0.0)
    assert admission is not None
    near = [i for i in range(8) if 60 * i <= quantum]
    best = max(near, key=lambda i: (cached[i], -i))
    assert admission.request.tenant == f"tenant-{best}"
