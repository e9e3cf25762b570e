from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.deadline import estimate_wait_s, lateness_s

paces = st.floats(0.1, 1e5)
lengths = st.floats(1, 1e4)
waits = st.integers(0, 10_000)
times = st.floats(0.01, 1e5)


@given(waits, st.floats(0, 1e5), st.floats(0, 1e4), times)
def test_no_refusal_without_evidence(n: int, pace: float, length: float, timeout_s: float) -> None:
    if n == 0 or pace == 0 or length == 0:
        assert lateness_s(estimate_wait_s(n, pace, length), timeout_s) is None
    assert lateness_s(estimate_wait_s(n, pace, length), None) is None


@given(waits, paces, lengths, times)
def test_refused_iff_late(n: int, pace: float, length: float, timeout_s: float) -> None:
    wait_s = n * length / pace
    late_s = lateness_s(estimate_wait_s(n, pace, length), timeout_s)
    assert (late_s is not None) == (wait_s > timeout_s)
    assert late_s is None or late_s == wait_s - timeout_s


@given(waits, paces, lengths, times, times)
def test_longer_time_never_hurts(
    n: int, pace: float, length: float, some_s: float, more_s: float
) -> None:
    wait_s = estimate_wait_s(n, pace, length)
    some_s, more_s = sorted((some_s, more_s))
    assert lateness_s(wait_s, some_s) is not None or lateness_s(wait_s, more_s) is None
