"""Invariants of `serve_app.policy.adapter_retry`."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import AdapterAwayError, AdapterRefusedError
from serve_app.policy.adapter_retry import FailureBook

failures = st.sampled_from([AdapterRefusedError("bad", False), AdapterAwayError("away", 2.0)])
gaps = st.lists(st.tuples(failures, st.floats(0, 4000)), min_size=1, max_size=40)


@given(gaps)
def test_no_try_within_the_pause(steps: list[tuple[AdapterRefusedError, float]]) -> None:
    book, now_s = FailureBook(), 0.0
    for failure, gap_s in steps:
        pause_s = book.note("x", failure, now_s)
        told = book.find("x", now_s + pause_s * 0.999)
        assert type(told) is type(failure)
        assert told is not failure
        assert told.message == failure.message
        now_s += pause_s + gap_s


@given(st.integers(1, 40), failures)
def test_pauses_double_up_to_a_bound(n: int, failure: AdapterRefusedError) -> None:
    book = FailureBook()
    pauses = [book.note("x", failure, float(i)) for i in range(n)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 1800.0
    assert all(b in (2 * a, pauses[-1]) for a, b in itertools.pairwise(pauses))
    book.forget("x")
    assert book.find("x", 0.0) is None
    assert book.note("x", failure, 0.0) == pauses[0]


@given(gaps)
def test_every_pause_ends(steps: list[tuple[AdapterRefusedError, float]]) -> None:
    book = FailureBook()
    for failure, _ in steps:
        pause_s = book.note("x", failure, 0.0)
    assert book.find("x", pause_s) is None


@given(st.lists(st.integers(0, 50), max_size=100))
def test_what_is_remembered_is_bounded(names: list[int]) -> None:
    book = FailureBook(most=5)
    for i, name in enumerate(names):
        book.note(str(name), AdapterAwayError("away", 1.0), float(i) * 100)
        assert len(book) <= 5
        assert book.find(str(name), float(i) * 100) is not None
