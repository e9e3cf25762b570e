"""Invariants of `serve_app.policy.express`."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.express import Holder, may_go_beyond

_HOLDERS = st.builds(
    Holder,
    n_places=st.integers(1, 9),
    weight=st.sampled_from([0.5, 1.0, 4.0]),
    tier=st.integers(0, 1),
    counter=st.integers(0, 5),
)
_NEWCOMERS = st.builds(
    Holder,
    n_places=st.integers(0, 4),
    weight=st.sampled_from([0.5, 1.0, 4.0]),
    tier=st.integers(0, 1),
    counter=st.integers(0, 5),
)


@given(_NEWCOMERS, _HOLDERS)
def test_nobody_overtakes(newcomer: Holder, other: Holder) -> None:
    if newcomer.tier == other.tier and may_go_beyond(newcomer, 1, [other]):
        assert (newcomer.n_places + 1) / newcomer.weight <= (other.n_places - 1) / other.weight


@given(_NEWCOMERS, st.lists(_HOLDERS, max_size=5), st.integers(2, 9))
def test_backlog_waits(newcomer: Holder, others: list[Holder], n_waiting: int) -> None:
    assert not may_go_beyond(newcomer, n_waiting, others)
    less = [
        other for other in others if (other.tier, other.counter) < (newcomer.tier, newcomer.counter)
    ]
    assert not may_go_beyond(newcomer, 1, less)


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 9), st.integers(0, 1))
def test_places_settle(counters: list[int], own: int, n_places: int) -> None:
    others = [Holder(1, 1.0, 0, counter) for counter in counters]
    assert not may_go_beyond(Holder(n_places, 1.0, 0, own), 1, others)


@given(_NEWCOMERS, st.lists(_HOLDERS, max_size=5))
def test_tiers_yield_down(newcomer: Holder, others: list[Holder]) -> None:
    higher = [other for other in others if other.tier < newcomer.tier]
    assert not may_go_beyond(newcomer, 1, higher)
    lower = [other for other in others if other.tier > newcomer.tier]
    assert may_go_beyond(newcomer, 1, lower) == bool(lower)
