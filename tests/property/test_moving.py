"""Invariants of `serve_app.policy.moving`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.moving import MovingMean, MovingRate, MovingSpread

_PASSED = st.floats(0.01, 100.0)
_VALUES = st.lists(st.tuples(st.floats(-100.0, 100.0), _PASSED), min_size=1, max_size=20)


@given(_VALUES, st.floats(0.1, 1000.0))
def test_mean_stays_within(given_values: list[tuple[float, float]], window_s: float) -> None:
    mean = MovingMean(window_s)
    for value, passed_s in given_values:
        mean.add(value, passed_s)
    values = [value for value, _ in given_values]
    assert min(values) - 1e-6 <= mean.value <= max(values) + 1e-6


@given(st.floats(0.0, 1000.0), st.lists(_PASSED, min_size=1, max_size=20), st.floats(0.1, 1000.0))
def test_rate_of_a_steady_flow(per_s: float, looks: list[float], window_s: float) -> None:
    rate = MovingRate(window_s)
    for passed_s in looks:
        rate.add(per_s * passed_s, passed_s)
        assert rate.value == pytest.approx(per_s)


@given(st.floats(0.0, 1000.0), st.lists(_PASSED, min_size=1, max_size=20), st.floats(0.1, 1000.0))
def test_steady_flow_has_no_spread(per_s: float, looks: list[float], window_s: float) -> None:
    spread = MovingSpread(window_s)
    for passed_s in looks:
        spread.add(per_s * passed_s, passed_s, per_s)
    assert spread.deviation(window_s) == pytest.approx(0.0, abs=1e-6)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=50), st.floats(0.1, 1000.0))
def test_longer_windows_err_less(amounts: list[float], window_s: float) -> None:
    spread = MovingSpread(100.0)
    for amount in amounts:
        spread.add(amount, 1.0, 10.0)
    assert spread.deviation(2 * window_s) <= spread.deviation(window_s)
