from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_figures import Longest, measure_fairness
from serve_app.policy.fairness_options import Cost, MovingAverage, Share
from tests.support.batch_engine import BatchEngine, make_request

SEATS = 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.integers(1, 12)), max_size=60
    ),
    st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=3, max_size=3),
    st.booleans(),
)
def test_gap_stays_below_the_bound(
    requests: Sequence[tuple[str, int, int]], weights: list[float], predicts: bool
) -> None:
    weight_of = {TenantId(t): weight for t, weight in zip("abc", weights, strict=True)}
    shares = {tenant: Share(weight) for tenant, weight in weight_of.items()}
    queue = Vtc(predictor=MovingAverage() if predicts else None, shares=shares)
    engine, longest = BatchEngine(queue, seats=SEATS), Longest()
    for tenant, prompt, output in requests:
        ticket = engine.send(tenant, prompt, output)
        longest = longest.with_request(make_request(ticket, tenant, prompt, output))
        if len(requests) % 3 == 0:
            engine.step()
    for _ in range(80):
        engine.step()
        figures = measure_fairness(queue, Cost(), longest, SEATS, weight_of)
        assert figures.gap <= figures.bound
        assert set(figures.lags) == queue.backlogged()
        assert max(figures.lags.values(), default=0.0) == figures.gap


def test_bound_is_that_of_the_longest_request_in_every_place() -> None:
    longest = Longest()
    for prompt, limit in ((10, 5), (3, 40), (100, 1)):
        longest = longest.with_request(make_request("t", "a", prompt, limit))
    assert longest == Longest(100, 101)
    assert measure_fairness(Vtc(), Cost(), longest, 3, {}).bound == 2 * 2 * 3 * 101
