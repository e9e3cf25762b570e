"""What a tenant pays for."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_options import (
    UNITS,
    Cost,
    MovingAverage,
    Share,
)
from serve_app.policy.fairness_settings import VtcSettings
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Fit
from tests.support.batch_engine import ENGINE, always, make_request
from tests.support.fair_runs import A, B

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
