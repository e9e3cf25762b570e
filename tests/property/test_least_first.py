from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.policy.least_first import Key, LeastFirst

items = st.sampled_from("abcdefgh")
events = st.lists(
    st.tuples(st.sampled_from(["grow", "shrink", "add", "drop", "ask", "pop"]), items),
    max_size=300,
)


def replay_events(steps: list[tuple[str, str]]) -> tuple[LeastFirst[str], int]:
    """Plays the steps against a plain dictionary; returns the heap and the most it ever held."""
    keys: dict[str, Key] = {}
    heap: LeastFirst[str] = LeastFirst(keys.get)
    present: set[str] = set()
    most = 0
    for what, item in steps:
        if what == "add" and item not in keys:
            keys[item] = (0, item, 0)
            present.add(item)
            heap.put(item)
        elif item in keys and what in ("grow", "shrink"):
            keys[item] = (keys[item][0] + (3 if what == "grow" else -2), item, 0)
            if what == "shrink" and item in present:
                heap.put(item)
        elif what == "drop":
            keys.pop(item, None)
            present.discard(item)
        elif what in ("ask", "pop"):
            expected = min(present, key=lambda one: keys[one], default=None)
            assert (heap.least() if what == "ask" else heap.pop()) == expected
            if what == "pop" and expected is not None:
                present.discard(expected)
                del keys[expected]
        most = max(most, len(heap))
    return heap, most


@settings(deadline=None)
@given(events)
def test_least_is_least(steps: list[tuple[str, str]]) -> None:
    replay_events(steps)


@settings(deadline=None)
@given(st.integers(1, 2000))
def test_heap_stays_small(n: int) -> None:
    steps = [("add", "a"), ("add", "b"), *[("shrink", "a")] * n]
    _, most = replay_events(steps)
    assert most <= 2 * 2 + 65
