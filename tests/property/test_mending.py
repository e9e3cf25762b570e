"""Invariants of `serve_app.policy.mending`."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.mending import (
    LONGEST_S,
    SETTLED_S,
    Standing,
    choose_step,
    choose_wait_s,
)

_STANDINGS = st.builds(
    Standing,
    is_given_up=st.booleans(),
    n_running=st.integers(0, 4),
    n_wanted=st.integers(0, 4),
    has_better=st.booleans(),
    n_tries=st.integers(0, 100),
    missing_s=st.floats(0.0, 2 * LONGEST_S),
)


def _is_whole(standing: Standing) -> bool:
    return standing.n_running >= standing.n_wanted


@given(_STANDINGS)
def test_leaves_alone_what_runs(standing: Standing) -> None:
    if not standing.is_given_up or _is_whole(standing):
        assert choose_step(standing) == "nothing"


@given(_STANDINGS)
def test_goes_back_first(standing: Standing) -> None:
    first = replace(standing, is_given_up=True, has_better=True, n_tries=0)
    is_due = not _is_whole(first) and first.missing_s >= SETTLED_S
    assert choose_step(first) == ("go_back" if is_due else "nothing")


@given(st.integers(0, 10_000))
def test_tries_again_ever_later(n_tries: int) -> None:
    assert SETTLED_S < choose_wait_s(n_tries) <= choose_wait_s(n_tries + 1) <= LONGEST_S


@given(_STANDINGS)
def test_never_gives_up(standing: Standing) -> None:
    missing = replace(standing, is_given_up=True, missing_s=LONGEST_S)
    if not _is_whole(missing):
        assert choose_step(missing) == ("go_back" if missing.has_better else "try_again")
