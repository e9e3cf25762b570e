"""The numbered invariants of cluster/policy/answers.py, and how it hears answers."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.answers import Answer, Answers, Fallback, choose_wait_s, expected_usd
from cluster.policy.fleet import Node, NodeId, ZoneId

answers = st.lists(st.none() | st.floats(0.0, 300.0), max_size=20)
prices = st.floats(0.01, 1000.0)
fallbacks = st.builds(Fallback, prices, prices, st.floats(0.0, 300.0))
_NONE_S = -1.0
"""No wait, among waits."""


def _wait_s(seen: list[Answer], fallback: Fallback) -> float:
    wait_s = choose_wait_s(seen, fallback)
    return _NONE_S if wait_s is None else wait_s


@given(fallbacks)
def test_unknown_clouds_are_asked_once(fallback: Fallback) -> None:
    asked = Answers()
    assert asked.is_awaited(fallback, 5.0)
    assert not asked.is_awaited(fallback, 5.1)


@given(answers.filter(bool), fallbacks, st.none() | st.floats(0.0, 400.0))
def test_no_wait_is_cheaper(seen: list[Answer], fallback: Fallback, other: float | None) -> None:
    chosen = choose_wait_s(seen, fallback)
    least = expected_usd(chosen, seen, fallback)
    assert least <= expected_usd(other, seen, fallback) * (1 + 1e-9) + 1e-9


@given(answers.filter(bool), fallbacks)
def test_refusals_shorten(seen: list[Answer], fallback: Fallback) -> None:
    assert _wait_s([*seen, None], fallback) <= _wait_s(seen, fallback)


@given(answers, fallbacks, st.floats(1.01, 100.0))
def test_urgency_shortens(seen: list[Answer], fallback: Fallback, more: float) -> None:
    urgent = Fallback(fallback.usd_per_h, more * fallback.averted_usd_per_h, fallback.paid_s)
    assert _wait_s(seen, urgent) <= _wait_s(seen, fallback)


def test_quick_answers_are_waited_for_and_slow_ones_are_not() -> None:
    fallback = Fallback(3.0, 300.0 * 3.0, 60.0)
    assert choose_wait_s([1.0] * 20, fallback) == 1.0
    assert choose_wait_s([100.0] * 20, fallback) is None
    assert choose_wait_s([None] * 20, fallback) is None


def test_answer_is_counted_once_and_what_others_asked_for_is_not() -> None:
    asked = Answers()

    def see(now_s: float, *told: tuple[str, float, bool]) -> None:
        nodes = [
            Node(NodeId(name), ZoneId("a/r/x"), "spot", at_s, False, is_there)
            for name, at_s, is_there in told
        ]
        asked.see(nodes, now_s)

    see(100.0, ("old", 10.0, True), ("slow", 100.0, False))
    see(107.0, ("old", 10.0, True), ("slow", 100.0, True), ("quick", 105.0, True))
    see(107.0, ("old", 10.0, True), ("slow", 100.0, True), ("quick", 105.0, True))
    asked.refuse()
    assert list(asked._last) == [7.0, 2.0, None]
