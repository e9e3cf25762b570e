"""Decides how many nodes a fleet needs, from what Ray cannot place and from which nodes work.

Inputs: what waits for room, the room there is, what one node has, the nodes, the time.

The rule:
  - What waits goes where there is room, the largest first; the rest fills nodes that are still to
    come. Needed are those and the nodes that work.
  - The target rises with the need at once. It falls to the most that was needed within `idle_s`.
  - It is never below `least`, never above `most`.

Invariants:
  1. target_stays_within_bounds: it is from `least` to `most`.
  2. what_waits_gets_room: below `most`, what waits and fits a node fits what is there and to come.
  3. what_fits_no_node_asks_for_none: what waits in vain adds nothing.
  4. starting_nodes_count_once: the same need, while its nodes start, gives the same target.
  5. work_holds_the_target: it falls only after a need that was lower for all of `idle_s`.
  6. known_nodes_are_remembered: what one has is known while there is none, once one was seen.
  7. nodes_that_work_end_last: no node that works ends while one of its market does not.

Source: first-fit decreasing (Johnson, 1973), here over several resources at a time; the rest is our
own.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.policy.fleet import End, Node, NodeId

Resources = Mapping[str, float]
"""Amounts by Ray's names of resources."""

_TINY = 1e-6
"""Ray counts in parts of ten thousand; sums of them are not exact here."""


@dataclass(frozen=True)
class Demand:
    """What Ray says of its work.

    Attributes:
        waiting: What has no place, one entry each.
        room: What is free on each node that works, or is not the fleet's.
        working: The fleet's nodes that hold something.
        shape: What one of the fleet's nodes has; None while Ray knows none.
    """

    waiting: tuple[Resources, ...] = ()
    room: tuple[Resources, ...] = ()
    working: frozenset[NodeId] = frozenset()
    shape: Resources | None = None


class DemandTarget:
    """A target that follows demand.

    Args:
        least: The target without demand.
        most: The highest target.
        idle_s: For so long a need is remembered.
        last: The target of whoever decided before, as if it were needed at the first call.
    """

    def __init__(self, least: int, most: int, idle_s: float, last: int = 0) -> None:
        self._least = least
        self._most = most
        self._idle_s = idle_s
        self._last = last
        self._shape: Resources | None = None
        """As it was seen last: a fleet without nodes may need several."""
        self._needs: deque[tuple[float, int]] = deque()
        """Times and needs, each higher than all after it."""

    def aim(self, demand: Demand, now_s: float) -> int:
        """Return the target for what Ray says now."""
        self._shape = demand.shape or self._shape
        need = len(demand.working) + count_fresh(replace(demand, shape=self._shape))
        self._remember(need if self._needs else max(need, self._last), now_s)
        return max(self._least, min(self._needs[0][1], self._most))

    def _remember(self, need: int, now_s: float) -> None:
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now_s, need))
        while self._needs[0][0] < now_s - self._idle_s:
            self._needs.popleft()


def count_fresh(demand: Demand) -> int:
    """Return how many nodes more what waits would fill."""
    if demand.shape is None:
        return min(1, len(demand.waiting))  # the first node that joins will say what one has
    room = [dict(free) for free in demand.room]
    n_there = len(room)
    shape = demand.shape
    fitting = [bundle for bundle in demand.waiting if _fits(bundle, shape)]
    for bundle in sorted(fitting, key=lambda bundle: -_share(bundle, shape)):
        place = next((free for free in room if _fits(bundle, free)), None)
        if place is None:
            place = dict(shape)
            room.append(place)
        for name, amount in bundle.items():
            place[name] = place.get(name, 0.0) - amount
    return len(room) - n_there


def end_idle_first(
    ends: Sequence[End], nodes: Sequence[Node], working: frozenset[NodeId]
) -> list[End]:
    """Return the ends, each of a node that works put upon one of its market that does not.

    Such a node of the same zone is taken first, then by name.
    """
    known = {node.id: node for node in nodes}
    taken = working | {end.node for end in ends}
    changed = []
    for end in ends:
        instead = _idle_like(known[end.node], nodes, taken) if end.node in working else None
        taken |= {instead} if instead is not None else set()
        changed.append(end if instead is None else End(instead, end.reason))
    return changed


def _idle_like(node: Node, nodes: Sequence[Node], taken: Collection[NodeId]) -> NodeId | None:
    idle = [n for n in nodes if n.id not in taken and n.is_ready and n.market == node.market]
    idle.sort(key=lambda n: (n.zone != node.zone, n.id))
    return idle[0].id if idle else None


def _share(bundle: Resources, shape: Resources) -> float:
    """Return the share of a node that a bundle takes of what it takes most of."""
    shares = [amount / shape[name] for name, amount in bundle.items() if shape.get(name)]
    return max(shares, default=0.0)


def _fits(bundle: Resources, free: Resources) -> bool:
    return all(amount <= free.get(name, 0.0) + _TINY for name, amount in bundle.items())
