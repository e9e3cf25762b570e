"""Invariants of `serve_app.policy.breaker`."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.messages import EngineId
from serve_app.policy.breaker import FIRST_S, LONGEST_S, MOST, WINDOW_S, Breaker, find_skipped

_GAPS_S = st.lists(st.floats(0.0, 60.0), max_size=100)


@given(_GAPS_S)
def test_few_failures_skip_nobody(gaps_s: list[float]) -> None:
    breaker, now_s, failed_s = Breaker(), 0.0, list[float]()
    for gap_s in gaps_s:
        now_s += gap_s
        recent = [s for s in failed_s if s > now_s - WINDOW_S]
        if len(recent) + 1 >= MOST:
            continue
        failed_s.append(now_s)
        breaker = breaker.with_failure(now_s)
        assert not breaker.is_open(now_s)
        assert not breaker.is_half_open(now_s)


@given(st.floats(0.0, 100.0), st.lists(st.floats(0.0, 50.0), min_size=1, max_size=20))
def test_opens_for_longer_each_time(now_s: float, late_s: list[float]) -> None:
    breaker, lasted_s = Breaker(), 0.0
    for _ in range(MOST):
        breaker = breaker.with_failure(now_s)
    for late in late_s:
        assert breaker.until_s is not None
        lasts_s = breaker.until_s - now_s
        assert lasted_s <= lasts_s + 1e-6
        assert lasts_s >= FIRST_S - 1e-6
        lasted_s, now_s = lasts_s, breaker.until_s + late
        assert breaker.is_half_open(now_s)
        breaker = breaker.with_failure(now_s)


@given(st.lists(st.tuples(st.floats(0.0, 200.0), st.booleans()), max_size=100))
def test_never_for_ever(events: list[tuple[float, bool]]) -> None:
    breaker, now_s = Breaker(), 0.0
    for gap_s, is_failure in events:
        now_s += gap_s
        breaker = breaker.with_failure(now_s) if is_failure else breaker.with_success()
        assert not breaker.is_open(now_s + LONGEST_S + 0.001)
        if not is_failure:
            assert not breaker.is_open(now_s)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 300.0)), min_size=1, max_size=8))
def test_never_all(engines: list[tuple[bool, float]]) -> None:
    ready = {
        EngineId(f"e{i}"): Breaker(until_s=until_s if is_tripped else None)
        for i, (is_tripped, until_s) in enumerate(engines)
    }
    skipped = find_skipped(ready, 100.0)
    assert len(skipped) < len(ready)
    assert all(ready[engine_id].is_open(100.0) for engine_id in skipped)
