import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.load_price import price_load

counts = st.integers(0, 10**6)
seconds = st.floats(0, 1e5)
paces = st.floats(0, 1e5)


@given(counts, seconds, paces, st.floats(0, 1e6))
def test_fixed_price_is_kept(n: int, stall_s: float, pace: float, fixed: float) -> None:
    assert price_load(n, stall_s, pace, fixed) == fixed


@given(counts, seconds, paces)
def test_idle_engine_asks_nothing(n: int, stall_s: float, pace: float) -> None:
    assert price_load(n, 0.0, pace, None) == 0
    assert price_load(n, stall_s, 0.0, None) == 0
    assert price_load(0, stall_s, pace, None) == 0


@given(st.integers(1, 10**6), seconds, paces)
def test_price_is_what_others_lose(n: int, stall_s: float, pace: float) -> None:
    assert n * price_load(n, stall_s, pace, None) == pytest.approx(stall_s * pace)
