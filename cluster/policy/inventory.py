"""A fleet's nodes, counted by zone, market and state."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.policy.fleet import Node, ZoneId


@dataclass(frozen=True)
class Inventory:
    """The nodes at one time.

    Attributes:
        nodes: All.
        on_demand: Those that stay.
        ready_spot: Spot nodes that serve.
        spot: Number of spot nodes in each zone, those included that no cloud has confirmed yet.
        confirmed: Number of those that a cloud has confirmed.
        ready: Number of those that serve.
        held_since_s: When the oldest confirmed spot node of each zone was asked for.
    """

    nodes: Sequence[Node]
    on_demand: Sequence[Node]
    ready_spot: Sequence[Node]
    spot: Counter[ZoneId]
    confirmed: Counter[ZoneId]
    ready: Counter[ZoneId]
    held_since_s: Mapping[ZoneId, float]

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> "Inventory":
        """Sort nodes."""
        spot = [node for node in nodes if node.market == "spot"]
        known = [node for node in spot if node.is_confirmed]
        ready = [node for node in spot if node.is_ready]
        since_s: dict[ZoneId, float] = {}
        for node in known:
            since_s[node.zone] = min(node.started_s, since_s.get(node.zone, math.inf))
        return cls(
            nodes,
            [node for node in nodes if node.market == "on-demand"],
            ready,
            Counter(node.zone for node in spot),
            Counter(node.zone for node in known),
            Counter(node.zone for node in ready),
            since_s,
        )

    def count_ready_by(self, node: Node, slack_s: float) -> int:
        """Count other confirmed nodes that are ready no later than this one, or hardly later."""
        return sum(
            other.is_confirmed and other.started_s <= node.started_s + slack_s
            for other in self.nodes
            if other.id != node.id
        )


def newest_first(nodes: Iterable[Node]) -> list[Node]:
    """Return nodes in the order in which they are ended."""
    return sorted(nodes, key=lambda node: (-node.started_s, node.id))
