"""What the machine in test_fairness_machine.py does not show: shares, cheats, options, metrics."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.messages import EngineId, TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_audit import Admitted, Charged, Ended, Record, replay
from serve_app.policy.fairness_options import (
    UNITS,
    Cost,
    Locality,
    MovingAverage,
    Predictor,
    Share,
)
from serve_app.policy.fairness_settings import VtcSettings
from serve_app.policy.fairness_ticket import SavedTier, Snapshot
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Fit, Later
from tests.support.batch_engine import ENGINE, BatchEngine, always, make_request

A, B, C = TenantId("a"), TenantId("b"), TenantId("c")
predictors = st.sampled_from([None, MovingAverage()])


def fresh(predicts: bool) -> Predictor | None:
    return MovingAverage() if predicts else None


def share_of(engine: BatchEngine, tenant: str) -> float:
    return engine.service[tenant] / sum(engine.service.values())


class Honest:
    """A tenant that always has a few ordinary requests waiting."""

    def __init__(self, engine: BatchEngine, tenant: str, n: int = 4) -> None:
        self.engine, self.tenant = engine, tenant
        self.open = [engine.send(tenant, 10, 10) for _ in range(n)]

    def refill(self) -> None:
        for i, ticket in enumerate(self.open):
            if self.engine.produced[ticket]:
                self.open[i] = self.engine.send(self.tenant, 10, 10)


# --- shares ----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=2),
    st.lists(st.integers(1, 40), min_size=2, max_size=2),
    st.booleans(),
)
def test_backlogged_tenants_get_equal_service(
    prompts: list[int], outputs: list[int], predicts: bool
) -> None:
    engine = BatchEngine(Vtc(predictor=fresh(predicts)))
    for i, tenant in enumerate("ab"):
        for _ in range(1500):
            engine.send(tenant, prompts[i], outputs[i])
    engine.run(1200)
    assert isinstance(engine.order, Vtc)
    if engine.order.backlogged() == {A, B}:
        assert share_of(engine, "a") == pytest.approx(0.5, abs=0.05)


@settings(max_examples=10, deadline=None)
@given(st.permutations([1, 2, 3, 4]), st.booleans())
def test_service_follows_weights(weights: list[int], predicts: bool) -> None:
    shares = {TenantId(str(i)): Share(float(w)) for i, w in enumerate(weights)}
    engine = BatchEngine(Vtc(shares=shares, predictor=fresh(predicts)), seats=12)
    for _ in range(600):
        for i in range(4):
            engine.send(str(i), 8, 12)
    engine.run(700)
    for i, weight in enumerate(weights):
        assert share_of(engine, str(i)) == pytest.approx(weight / 10, abs=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(0, 300), st.booleans(), st.booleans())
def test_burst_of_a_tenant_that_was_away_gets_half(
    early: int, away_steps: int, predicts: bool, with_queue: bool
) -> None:
    engine = BatchEngine(Vtc(predictor=fresh(predicts)))
    for _ in range(early):
        engine.send("b", 10, 10)
    busy = Honest(engine, "a", 12 if with_queue else 8)
    engine.run(early + away_steps, busy.refill)
    before = dict(engine.service)
    busy.open += [engine.send("a", 10, 10) for _ in range(8)]
    burst = [engine.send("b", 10, 10) for _ in range(60)]
    while any(ticket not in engine.running and not engine.produced[ticket] for ticket in burst):
        busy.refill()
        engine.step()
    got_a = engine.service["a"] - before.get("a", 0)
    got_b = engine.service["b"] - before.get("b", 0)
    assert 0.45 <= got_b / (got_a + got_b) <= 0.55


# --- cheats ----------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 50), st.booleans())
def test_cheating_gains_nothing_by_many_adapters(n_lanes: int, predicts: bool) -> None:
    engine = BatchEngine(Vtc(predictor=fresh(predicts)))
    for i in range(600):
        engine.send("honest", 10, 10)
        engine.send("cheat", 10, 10, lane=f"adapter-{i % n_lanes}")
    engine.run(500)
    assert share_of(engine, "cheat") <= 0.51


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.booleans())
def test_cheating_gains_nothing_by_aborting_and_sending_again(at: int, predicts: bool) -> None:
    engine = BatchEngine(Vtc(predictor=fresh(predicts)))
    honest = Honest(engine, "honest", 12)
    cheat = [engine.send("cheat", 10, 10) for _ in range(12)]

    def resend() -> None:
        honest.refill()
        for i, ticket in enumerate(cheat):
            if engine.produced[ticket] >= at:
                engine.abort(ticket)
                cheat[i] = engine.send("cheat", 10, 10)

    engine.run(800, resend)
    assert share_of(engine, "cheat") <= 0.52


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 50))
def test_cheating_gains_nothing_by_leaving_and_coming_back(every: int) -> None:
    engine = BatchEngine(Vtc())
    honest = Honest(engine, "honest", 12)
    cheat: list[TicketId] = []
    steps = iter(range(10_000))

    def come_and_go() -> None:
        honest.refill()
        if next(steps) % every == 0:
            for ticket in cheat:
                if not engine.produced[ticket]:
                    engine.order.abort(ticket)
            cheat[:] = [engine.send("cheat", 10, 10) for _ in range(12)]

    engine.run(800, come_and_go)
    assert share_of(engine, "cheat") <= 0.52


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([100, 4096]), st.booleans())
def test_cheating_gains_nothing_by_large_max_tokens(limit: int, predicts: bool) -> None:
    engine = BatchEngine(Vtc(predictor=fresh(predicts)))
    for _ in range(600):
        engine.send("honest", 10, 10)
        engine.send("cheat", 10, 10, limit=limit)
    engine.run(500)
    assert 0.48 <= share_of(engine, "cheat") <= 0.52


# --- charges ---------------------------------------------------------------------------------

tokens = st.integers(1, 5000)


@settings(deadline=None)
@given(tokens, tokens, st.lists(st.integers(1, 50), min_size=1), st.integers(0, 6000), tokens)
def test_charged_once(
    prompt: int, limit: int, chunks: list[int], cached: int, first_length: int
) -> None:
    """However often it loses its engine, and whatever was guessed, a ticket pays for its tokens."""
    predictor = MovingAverage()
    predictor.learn(A, first_length)
    queue = Vtc(predictor=predictor)
    request = make_request("t", "a", prompt, limit)
    queue.arrive(request, 0.0)
    for n in chunks:
        assert queue.admit(lambda _: Fit(ENGINE, cached_tokens=prompt // 2), 0.0) is not None
        queue.charge(request.ticket, n)
        queue.requeue(request.ticket)
    queue.admit(always, 0.0)
    queue.finish(request.ticket, cached_tokens=cached)
    computed = prompt - min(cached, prompt - 1)
    assert queue.counters()[A] == (computed + 2 * sum(chunks)) * UNITS


@settings(deadline=None)
@given(tokens, tokens, tokens, st.booleans())
def test_refund_exact(prompt: int, limit: int, learned: int, is_running: bool) -> None:
    predictor = MovingAverage()
    predictor.learn(A, learned)
    queue = Vtc(predictor=predictor, shares={A: Share(3.0)})
    request = make_request("t", "a", prompt, limit)
    queue.arrive(request, 0.0)
    if is_running:
        queue.admit(always, 0.0)
        assert queue.counters()[A] > 0
    queue.abort(request.ticket, is_computed=False)
    assert queue.counters()[A] == 0


@settings(deadline=None)
@given(st.integers(1, 200), st.sampled_from([1.0, 2.0, 5.0]), st.sets(st.integers(0, 59)))
def test_load_is_paid_once(n_tokens: int, weight: float, at: set[int]) -> None:
    """Who has adapters loaded gets as much less of the rest, as long as it and another wait."""
    queue = Vtc(shares={A: Share(weight)})
    price, served = 30, {A: 0.0, B: 0.0}
    for i in range(200):
        for tenant in (A, B):
            queue.arrive(make_request(f"{tenant}{i:03}", tenant, price), 0.0)
    for i in range(60):
        if i in at:
            queue.charge_load(A, "", n_tokens)
            served[A] += 2 * n_tokens / weight
        while served[A] - served[B] >= price:  # Until the other has caught up.
            admission = queue.admit(always, 0.0)
            assert admission is not None
            assert admission.request.tenant == B
            queue.finish(admission.request.ticket)
            served[B] += price
            if queue.backlogged() != {A, B}:
                return
        admission = queue.admit(always, 0.0)
        assert admission is not None
        queue.finish(admission.request.ticket)
        tenant = admission.request.tenant
        served[tenant] += price / (weight if tenant == A else 1.0)
    assert queue.counters() == {t: round(service * UNITS) for t, service in served.items()}


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), max_size=20), st.sampled_from([1.0, 3.0, 7.0]))
def test_cost_is_linear(chunks: list[int], weight: float) -> None:
    queues = [Vtc(shares={A: Share(weight)}) for _ in range(2)]
    request = make_request("t", "a")
    for queue in queues:
        queue.arrive(request, 0.0)
        queue.admit(always, 0.0)
    for n in chunks:
        queues[0].charge(request.ticket, n)
    queues[1].charge(request.ticket, sum(chunks))
    assert queues[0].counters() == queues[1].counters()


@settings(deadline=None)
@given(st.floats(0.1, 10), st.integers(1, 100), st.integers(0, 100))
def test_cost_factor_applies_to_a_model(factor: float, prompt: int, output: int) -> None:
    queue = Vtc(VtcSettings(cost=Cost(models={"large": factor})))
    request = Waiting(make_request("t", "a").ticket, A, prompt, 100, model="large")
    queue.arrive(request, 0.0)
    queue.admit(always, 0.0)
    queue.charge(request.ticket, output)
    assert queue.counters()[A] / UNITS == pytest.approx(factor * (prompt + 2 * output), rel=1e-4)


@settings(deadline=None)
@given(st.lists(tokens, max_size=30), tokens, st.sampled_from([A, B]))
def test_prediction_within_limits(lengths: list[int], limit: int, tenant: TenantId) -> None:
    predictor = MovingAverage()
    for length in lengths:
        predictor.learn(A, length)
    guess = predictor.predict(make_request("t", tenant, max_tokens=limit))
    assert 0 <= guess <= limit
    again = MovingAverage()
    again.load(predictor.export())
    assert again.predict(make_request("t", tenant, max_tokens=limit)) == guess


# --- counters --------------------------------------------------------------------------------

histories = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 30), st.integers(0, 30)),
    min_size=1,
    max_size=60,
)


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


# --- tiers -----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([0.05, 0.1, 0.3]), st.booleans(), st.booleans())
def test_floor_holds(floor: float, predicts: bool, was_alone: bool) -> None:
    shares = {TenantId("high"): Share(tier=0), TenantId("low"): Share(tier=1)}
    queue = Vtc(VtcSettings(floor=floor), predictor=fresh(predicts), shares=shares)
    engine = BatchEngine(queue)
    for _ in range(3000):
        engine.send("low", 10, 10)
    if was_alone:
        engine.run(300)
    for _ in range(3000):
        engine.send("high", 10, 10)
    engine.run(300)
    engine.service.clear()
    engine.run(1500)
    slack = 0.0 if not was_alone else 10_000 / sum(engine.service.values())
    assert share_of(engine, "low") >= floor - slack - 0.02


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([0.0, 0.05, 0.1, 0.3]), st.booleans())
def test_strict_above_floor(floor: float, predicts: bool) -> None:
    shares = {TenantId("high"): Share(tier=0), TenantId("low"): Share(tier=1)}
    queue = Vtc(VtcSettings(floor=floor), predictor=fresh(predicts), shares=shares)
    engine = BatchEngine(queue)
    for _ in range(2000):
        engine.send("high", 10, 10)
        engine.send("low", 10, 10)
    engine.run(1500)
    assert share_of(engine, "low") <= floor + 0.02


# --- locality --------------------------------------------------------------------------------


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


# --- death, and what others may see ----------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(histories, histories, st.booleans())
def test_snapshot_restores_all(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], predicts: bool
) -> None:
    engine = BatchEngine(Vtc(predictor=fresh(predicts)))
    for tenant, prompt, output in before:
        engine.send(tenant, prompt, output + 1)
        engine.step()
    queue = engine.order
    assert isinstance(queue, Vtc)
    twin = BatchEngine(Vtc(predictor=fresh(predicts)), n_sent=engine.n_sent)
    assert isinstance(twin.order, Vtc)
    twin.order.restore(queue.snapshot())
    twin.lengths, twin.running = dict(engine.lengths), dict(engine.running)
    twin.produced = engine.produced.copy()
    twin.service = engine.service.copy()
    for tenant, prompt, output in after:
        for one in (engine, twin):
            one.send(tenant, prompt, output + 1)
        assert engine.step() == twin.step()
        assert list(engine.running) == list(twin.running)
    assert engine.service == twin.service


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.booleans())
def test_adopted_tickets_pay_what_the_snapshot_did_not_know(
    known: int, since: int, predicts: bool
) -> None:
    first = Vtc(predictor=fresh(predicts))
    running, waiting_ = make_request("r", "a"), make_request("w", "b")
    first.arrive(running, 0.0)
    first.admit(always, 0.0)
    first.charge(running.ticket, known)
    first.arrive(waiting_, 0.0)
    second = Vtc(predictor=fresh(predicts))
    second.restore(first.snapshot())
    for request in (running, waiting_, make_request("unknown", "c")):
        second.adopt(request, known + since, 1.0)
        second.adopt(request, known + since, 1.0)
    counters = second.counters()
    lift = min(counters[B], counters[C]) - (10 + 2 * (known + since)) * UNITS
    assert counters[A] == (10 + 2 * (known + since)) * UNITS
    assert lift >= 0
    assert len(second) == 0


def test_metrics_name_gap_and_lags_of_those_who_wait() -> None:
    queue = Vtc()
    for n, tenant in enumerate(["a", "b", "a", "b", "c"]):
        queue.arrive(make_request(str(n), tenant, 10 * (n + 1)), 0.0)
    queue.admit(always, 0.0)
    queue.admit(always, 0.0)
    assert queue.find_gap() == 20.0
    assert queue.find_lags() == {"c": 20.0, "a": 10.0, "b": 0.0}
    assert list(queue.find_lags(1)) == ["c"]


# --- audit -----------------------------------------------------------------------------------


def make_log() -> list[Record]:
    records: list[Record] = []
    engine = BatchEngine(Vtc(predictor=MovingAverage(), audit=records.append), seats=3)
    for n in range(12):
        engine.send("ab"[n % 2], 3 + n, 4)
    engine.run(30)
    return records


def test_replay_accepts_what_the_queue_did() -> None:
    assert replay(make_log()) == []


def test_replay_finds_a_turn_out_of_order() -> None:
    log = make_log()
    turns = [i for i, r in enumerate(log) if isinstance(r, Admitted)]
    first, last = log[turns[0]], log[turns[-1]]
    log[turns[0]], log[turns[-1]] = last, first
    assert any("admitted before" in text for text in replay(log))


def test_replay_finds_a_double_charge() -> None:
    log = make_log()
    i = next(i for i, r in enumerate(log) if isinstance(r, Charged))
    assert any("counter of" in text for text in replay([*log[: i + 1], log[i], *log[i + 1 :]]))


def test_replay_finds_a_ticket_that_ends_twice() -> None:
    log = make_log()
    end = next(r for r in log if isinstance(r, Ended))
    assert any("has ended" in text for text in replay([*log, end]))


def test_skipped_lanes_are_recorded_and_cost_nothing() -> None:
    records: list[Record] = []
    queue = Vtc(audit=records.append)
    queue.arrive(make_request("1", "a", lane="full"), 0.0)
    queue.arrive(make_request("2", "b", lane="free"), 0.0)
    admission = queue.admit(
        lambda request: Fit(EngineId("e")) if request.lane == "free" else None, 0.0
    )
    assert admission is not None
    assert admission.request.tenant == B
    assert queue.counters()[A] == 0
    assert isinstance(records[-1], Admitted)
    assert records[-1].refused_lanes == ["full"]
