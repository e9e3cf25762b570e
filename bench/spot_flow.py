"""The cheapest cover of a window by one who knows it: a flow through the times in which zones last.

Each node of the target is one unit that goes from stay to stay: a stay is a time without a break in
which a zone has room for so many nodes. A unit that comes to a stay starts its node one start-up
before it is needed, so both are paid meanwhile; between stays it is on demand, or the fleet is
short. A stay is left at its end only: to leave earlier saves nothing, as all zones ask one price.
That is a flow of least cost, found by cheapest paths one after the other (Jewell 1958).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.spot_sim import Setting
from bench.spot_trace import Trace


@dataclass(frozen=True, order=True)
class Stay:
    """Ticks [begin, end) in which a zone had room for one node more."""

    end: int
    begin: int


@dataclass
class _Edge:
    head: int
    cost: float
    back: int
    """Index of the edge in the other direction, among its head's."""
    is_free: bool = True


def list_stays(trace: Trace, setting: Setting, offset_s: float) -> list[Stay]:
    """Returns those that outlast a start-up, in the order of their ends."""
    n_ticks, n_start = count_ticks(setting)
    stays = []
    for zone in trace.rooms:
        rooms = [trace.room(zone, offset_s + t * setting.tick_s) for t in range(n_ticks)]
        for level in range(1, setting.target + 1):
            begin = None
            for tick, room in enumerate([*rooms, 0]):
                if room >= level and begin is None:
                    begin = tick
                elif room < level and begin is not None:
                    stays.append(Stay(tick, begin))
                    begin = None
    return sorted(stay for stay in stays if stay.end - stay.begin > n_start)


def count_ticks(setting: Setting) -> tuple[int, int]:
    """Returns the ticks of a window and of a start-up."""
    return round(setting.window_s / setting.tick_s), round(setting.start_up_s / setting.tick_s)


def cheapest_cover(stays: Sequence[Stay], setting: Setting, short_price: float) -> float:
    """Returns the price of a window.

    Args:
        stays: As listed.
        setting: Prices and times.
        short_price: Of a tick without one of the target's nodes; more than one on demand costs.
    """
    graph = _Graph(2 * len(stays) + 2)
    n_ticks, n_start = count_ticks(setting)
    on_demand = setting.on_demand_usd_per_h

    def gap(ticks: int) -> float:
        return min(on_demand * (ticks + n_start), short_price * ticks) if ticks > 0 else 0.0

    def leave(origin: int, at: int) -> None:
        graph.link(origin, graph.last, gap(n_ticks - at))
        for i, stay in enumerate(stays):
            ready = max(at, stay.begin + n_start)
            if ready < stay.end:
                paid = setting.spot_usd_per_h * (stay.end - ready + n_start)
                graph.link(origin, 2 * i + 1, gap(ready - at) + paid)

    for _ in range(setting.target):
        leave(0, n_start)  # a first node can serve after the first start-up
    for i, stay in enumerate(stays):
        graph.link(2 * i + 1, 2 * i + 2, 0.0)
        leave(2 * i + 2, stay.end)
    return sum(graph.push() for _ in range(setting.target))


class _Graph:
    """Edges of capacity one, from node 0 to the last."""

    def __init__(self, n_nodes: int) -> None:
        self.last = n_nodes - 1
        self._edges: list[list[_Edge]] = [[] for _ in range(n_nodes)]

    def link(self, tail: int, head: int, cost: float) -> None:
        """Adds an edge."""
        there, back = self._edges[tail], self._edges[head]
        there.append(_Edge(head, cost, len(back)))
        back.append(_Edge(tail, -cost, len(there) - 1, is_free=False))

    def push(self) -> float:
        """Sends one unit along the cheapest way that is left; returns its cost."""
        costs = [math.inf] * len(self._edges)
        costs[0] = 0.0
        came: list[tuple[int, _Edge] | None] = [None] * len(self._edges)
        changed = True
        while changed:  # Bellman and Ford's rounds; nodes stand nearly in the order of time
            changed = False
            for tail, edges in enumerate(self._edges):
                base = costs[tail]
                if base == math.inf:
                    continue
                for edge in edges:
                    if edge.is_free and base + edge.cost < costs[edge.head] - 1e-9:
                        costs[edge.head] = base + edge.cost
                        came[edge.head] = (tail, edge)
                        changed = True
        self._take(came)
        return costs[self.last]

    def _take(self, came: Sequence[tuple[int, _Edge] | None]) -> None:
        node = self.last
        while (step := came[node]) is not None:
            node, edge = step
            edge.is_free = False
            self._edges[edge.head][edge.back].is_free = True
