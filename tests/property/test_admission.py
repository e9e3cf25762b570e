"""Invariants of `serve_app.policy.admission`."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import LimitSettings
from serve_app.policy.admission import Pace, QueueView, admit

_LIMITS = st.integers(1, 40).map(lambda n: LimitSettings(max_waiting=n))
_TENANTS = st.sampled_from("abcdefgh")


def _view(waiting: Counter[str], tenant: str) -> QueueView:
    others = sum(1 for name, n in waiting.items() if n and name != tenant)
    return QueueView(waiting.total(), waiting[tenant], others)


@given(_LIMITS, st.lists(st.tuples(_TENANTS, st.booleans()), max_size=300))
def test_queue_is_bounded(limits: LimitSettings, events: list[tuple[str, bool]]) -> None:
    waiting: Counter[str] = Counter()
    for tenant, is_arrival in events:
        if is_arrival and admit(_view(waiting, tenant), limits) is None:
            waiting[tenant] += 1
        elif not is_arrival and waiting[tenant]:
            waiting[tenant] -= 1
        assert waiting.total() <= 2 * limits.max_waiting


def _draw_queue(data: st.DataObject, most: int, turns_per_s: float | None) -> QueueView:
    n_waiting = data.draw(st.integers(0, most))
    own = data.draw(st.integers(0, n_waiting))
    others = data.draw(st.integers(1 if n_waiting > own else 0, max(0, n_waiting - own)))
    return QueueView(n_waiting, own, others, turns_per_s)


@given(_LIMITS, st.none() | st.floats(0.01, 100.0), st.data())
def test_no_false_refusal(
    limits: LimitSettings, turns_per_s: float | None, data: st.DataObject
) -> None:
    queue = _draw_queue(data, limits.max_waiting - 1, turns_per_s)
    comes_in_time = turns_per_s is None or queue.n_waiting / turns_per_s <= limits.max_wait_s
    if comes_in_time:
        assert admit(queue, limits) is None


@given(st.floats(0.5, 60.0), st.floats(0.01, 100.0), st.data())
def test_refusals_are_prompt(max_wait_s: float, turns_per_s: float, data: st.DataObject) -> None:
    limits = LimitSettings(max_wait_s=max_wait_s)
    queue = _draw_queue(data, 2000, turns_per_s)
    refusal = admit(queue, limits)
    if queue.wait_s > max_wait_s:
        assert refusal is not None
    if refusal is not None:
        assert limits.retry_after_s <= refusal.retry_after_s <= 60.0


@given(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=200))
def test_pace_is_that_of_the_last_turns(gaps_s: list[float]) -> None:
    pace, now_s = Pace(), 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        pace.note_turn(now_s)
    rate = pace.turns_per_s(now_s + 0.01)
    if len(gaps_s) < 8:
        assert rate is None
    else:
        assert rate is not None
        known = gaps_s[-63:]
        assert rate == pytest.approx(min(len(gaps_s), 64) / (sum(known[-len(gaps_s) + 1 :]) + 0.01))
    pace.note_empty()
    assert pace.turns_per_s(now_s + 1.0) is None


@given(st.integers(2, 40).map(lambda n: LimitSettings(max_waiting=n)))
def test_full_queue_keeps_its_door_open(limits: LimitSettings) -> None:
    assert admit(QueueView(limits.max_waiting, 0, 1), limits) is None
    assert admit(QueueView(limits.max_waiting, 0, 1, turns_per_s=0.001), limits) is None
    assert admit(QueueView(limits.max_waiting, limits.max_waiting, 0), limits) is not None
