"""Invariants of `serve_app.policy.adapter_slots`."""

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.adapter_slots import AdapterSlots

_SLOTS = st.integers(1, 6)
_RUNNING = st.dictionaries(st.integers(1, 9), st.integers(1, 5), max_size=6)
_WAITING = st.lists(st.integers(1, 12), max_size=12)
_STEPS = st.lists(st.tuples(_RUNNING, _WAITING), min_size=1, max_size=8)


@given(_SLOTS, _STEPS)
def test_free_slot_closes_nothing(
    n_slots: int, steps: list[tuple[dict[int, int], list[int]]]
) -> None:
    slots = AdapterSlots(n_slots)
    for found, waiting in steps:
        running = dict(list(found.items())[:n_slots])
        closed = slots.plan(running, waiting)
        if len(running) < n_slots or set(waiting) <= set(running):
            assert not closed
        assert closed <= set(running)


@given(_SLOTS, _STEPS)
def test_half_stays_open(n_slots: int, steps: list[tuple[dict[int, int], list[int]]]) -> None:
    slots = AdapterSlots(n_slots)
    for running, waiting in steps:
        closed = slots.plan(dict(list(running.items())[:n_slots]), waiting)
        assert len(closed) <= max(1, n_slots // 2)


@given(_SLOTS, st.data())
def test_claims_last(n_slots: int, data: st.DataObject) -> None:
    slots = AdapterSlots(n_slots)
    running = {a: data.draw(st.integers(1, 5)) for a in range(1, n_slots + 1)}
    first = slots.plan(running, [100, 1, 1])
    assert len(first) == 1
    # Others may end, start and claim; as long as both are there, the claim is the same.
    for _ in range(3):
        others = {a: data.draw(st.integers(1, 5)) for a in range(1, n_slots + 1)}
        waiting = data.draw(st.permutations([100, 1, 2, 200]))
        assert first <= slots.plan(others, waiting)


@given(_SLOTS, _RUNNING, _WAITING)
def test_nobody_ahead_is_closed(n_slots: int, found: dict[int, int], waiting: list[int]) -> None:
    running = dict(list(found.items())[:n_slots])
    for closed in AdapterSlots(n_slots).plan(running, waiting):
        ahead = waiting[: waiting.index(closed)] if closed in waiting else waiting
        assert any(adapter not in running for adapter in ahead)


@dataclass
class _Request:
    adapter: int
    left: int


@given(_SLOTS, st.integers(0, 2**32))
def test_first_is_served(n_slots: int, seed: int) -> None:
    # Hot adapters with no end of requests, and one request that is always first in turn.
    rng = random.Random(seed)
    slots = AdapterSlots(n_slots)
    seats = 2 * n_slots + 1
    running = [_Request(1 + i % n_slots, rng.randint(1, 20)) for i in range(seats - 1)]
    steps_left = max(request.left for request in running)
    for _ in range(steps_left + 1):
        queue = [100] + [1 + i % n_slots for i in range(3 * n_slots)]
        closed = slots.plan(Counter(request.adapter for request in running), queue)
        for adapter in queue:
            adapters = {request.adapter for request in running}
            has_slot = adapter in adapters or len(adapters) < n_slots
            if len(running) < seats and has_slot and adapter not in closed:
                running.append(_Request(adapter, rng.randint(1, 20)))
        if any(request.adapter == 100 for request in running):
            return
        for request in running:
            request.left -= 1
        running = [request for request in running if request.left > 0]
    raise AssertionError(f"not served in {steps_left} steps")
