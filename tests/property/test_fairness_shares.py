"""Who gets what share, honest or not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.messages import TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_options import (
    Share,
)
from serve_app.policy.fairness_settings import VtcSettings
from tests.support.batch_engine import BatchEngine
from tests.support.fair_runs import A, B, fresh, share_of


class Honest:
    """A tenant that always has a few ordinary requests waiting."""

    def __init__(self, engine: BatchEngine, tenant: str, n: int = 4) -> None:
        self.engine, self.tenant = engine, tenant
        self.open = [engine.send(tenant, 10, 10) for _ in range(n)]

    def refill(self) -> None:
        for i, ticket in enumerate(self.open):
            if self.engine.produced[ticket]:
                self.open[i] = self.engine.send(self.tenant, 10, 10)


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
