"""Invariants of `serve_app.policy.slot_claims`."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.slot_claims import SlotClaims

_IDS = st.integers(1, 9)
_RUNNING = st.dictionaries(_IDS, st.integers(1, 5), min_size=1, max_size=6)
_SLOTS = st.integers(1, 6)
_CLAIMS = st.lists(st.tuples(_IDS, _RUNNING, st.sets(_IDS, max_size=3)), max_size=12)
Asked = list[tuple[int, Mapping[int, int], set[int]]]


@given(_CLAIMS, _SLOTS)
def test_half_stays_open(asked: Asked, slots: int) -> None:
    claims = SlotClaims()
    for adapter, running, ahead in asked:
        claims.claim(adapter, running, ahead, slots, 0.0)
        assert len(claims.closed(0.0)) <= max(1, slots // 2)


@given(_CLAIMS, _SLOTS)
def test_nobody_ahead_is_closed(asked: Asked, slots: int) -> None:
    claims = SlotClaims()
    for adapter, running, ahead in asked:
        before = claims.closed(0.0)
        if claims.claim(adapter, running, ahead, slots, 0.0):
            fresh = claims.closed(0.0) - before
            assert len(fresh) == 1
            assert not fresh & ahead
            assert fresh <= running.keys()


@given(_CLAIMS, _SLOTS)
def test_least_busy_is_closed(asked: Asked, slots: int) -> None:
    claims = SlotClaims()
    for adapter, running, ahead in asked:
        before = claims.closed(0.0)
        if claims.claim(adapter, running, ahead, slots, 0.0):
            (fresh,) = claims.closed(0.0) - before
            others = running.keys() - before - ahead
            assert all((running[fresh], fresh) <= (running[other], other) for other in others)


@given(_CLAIMS, _SLOTS)
def test_claims_end(asked: Asked, slots: int) -> None:
    claims = SlotClaims()
    for adapter, running, ahead in asked:
        claims.claim(adapter, running, ahead, slots, 0.0)
    assert not claims.closed(2.0)
    for adapter, running, ahead in asked:
        claims.claim(adapter, running, ahead, slots, 5.0)
    for adapter, _, _ in asked:
        claims.end(adapter)
    assert not claims.closed(5.0)


@given(_RUNNING, st.data())
def test_claimant_is_served(running: dict[int, int], data: st.DataObject) -> None:
    """Adapters that run never pause, but for those that are closed."""
    claims, claimant, slots = SlotClaims(), 99, len(running)
    old = dict(running)
    now_s = 0.0
    while any(old.values()) and len(running) >= slots:
        claims.claim(claimant, running, set(), slots, now_s)
        closed = claims.closed(now_s)
        ended = data.draw(st.sampled_from(sorted(a for a in old if old[a])))
        old[ended] -= 1
        running[ended] -= 1
        if ended not in closed:
            running[ended] += 1
        if not running[ended]:
            del running[ended]
        now_s += 0.5
    assert len(running) < slots
