"""Finds the item with the least key when keys mostly grow.

A key grows with every token that is charged, but the least one is asked for only once a decision.
So an entry of the heap holds a lower bound of its item's key, which is looked at again only when it
comes to the top. A key that has become less has to be told by `put`.

Invariants (each a property test of that name):

1. least_is_least: `least` is the item with the least key, whatever grew since it was put.
2. heap_stays_small: entries number at most twice the items, and a few.
"""

import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
_SPARE = 64

Key = tuple[int, str, int]
"""Counter, tenant, order of arrival. No two items may have the same."""


class LeastFirst(Generic[ItemT]):
    """Items in the order of their keys.

    Args:
        key_of: An item's key at this moment; None when it is no longer of interest.
    """

    def __init__(self, key_of: Callable[[ItemT], Key | None]) -> None:
        self._key_of = key_of
        self._heap: list[tuple[Key, ItemT]] = []
        self._bound: dict[ItemT, Key] = {}

    def put(self, item: ItemT) -> None:
        """Adds an item, or takes note that its key is less than it was."""
        key, bound = self._key_of(item), self._bound.get(item)
        if key is None or (bound is not None and bound <= key):
            return
        self._bound[item] = key
        heapq.heappush(self._heap, (key, item))
        if len(self._heap) > 2 * len(self._bound) + _SPARE:
            self._heap = [(key, item) for item, key in self._bound.items()]
            heapq.heapify(self._heap)

    def least(self) -> ItemT | None:
        """Returns the item with the least key."""
        heap, bound = self._heap, self._bound
        while heap:
            entry = heap[0]
            key, item = entry
            if bound.get(item) != key:
                heapq.heappop(heap)
                continue
            now = self._key_of(item)
            if now == key:
                return item
            if now is None:
                heapq.heappop(heap)
                del bound[item]
            else:
                bound[item] = now
                heapq.heapreplace(heap, (now, item))
        return None

    def pop(self) -> ItemT | None:
        """Takes out the item with the least key; `put` brings it back."""
        item = self.least()
        if item is not None:
            heapq.heappop(self._heap)
            del self._bound[item]
        return item

    def __len__(self) -> int:
        return len(self._heap)
