"""Invariants of `serve_app.policy.start_ups`."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.start_ups import LONGEST_S, choose_hold_s


def test_first_retry_is_at_once() -> None:
    assert choose_hold_s(1) == 0.0
    assert choose_hold_s(2) > 0.0


@given(st.integers(1, 10_000))
def test_waits_grow_to_a_bound(n_failed: int) -> None:
    assert choose_hold_s(n_failed) <= choose_hold_s(n_failed + 1) <= LONGEST_S
