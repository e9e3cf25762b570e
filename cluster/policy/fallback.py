"""Counts the on-demand nodes that are missing beside spot nodes, and those that may end.

Inputs: the nodes, the spot nodes that are being asked for, what may happen to them, prices.

The rule:
  - Confirmed spot nodes say how many on-demand nodes are wanted. What would not be wanted if all
    spot nodes came that are asked for is doubtful.
  - Those beyond what all nodes need may end, of the ready ones those beyond what ready ones need.

Invariants:
  1. parts_add_up: certain and doubtful ones together are those that are missing.
  2. nothing_asked_is_certain: without spot nodes on the way nothing is doubtful.
  3. the_paid_stays: none ends before it has been there for what is paid at least.

Source: our own, over `cover.py`.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.policy.answers import Fallback
from cluster.policy.cover import Pricing
from cluster.policy.fleet import Node, ZoneId
from cluster.policy.inventory import Inventory, newest_first
from cluster.policy.shortage import Odds


@dataclass(frozen=True)
class Missing:
    """On-demand nodes to ask for.

    Attributes:
        wanted: Beside the confirmed spot nodes, those included that are there.
        certain: Missing whatever clouds answer.
        doubtful: Missing besides, until the spot nodes come that are asked for.
        averted_usd_per_h: The expected price of being without the doubtful ones.
    """

    wanted: int
    certain: int
    doubtful: int
    averted_usd_per_h: float

    def hanging(self, on_demand_usd_per_h: float, paid_s: float) -> Fallback | None:
        """Return what hangs on clouds' answers; None where nothing does."""
        if not self.doubtful:
            return None
        return Fallback(self.doubtful * on_demand_usd_per_h, self.averted_usd_per_h, paid_s)


@dataclass(frozen=True)
class Keeping:
    """What is to be left when nodes end.

    Attributes:
        least: Ready nodes.
        slack_s: By which a node may be ready later than the one in whose place it comes.
        paid_s: What a node is paid for at least.
    """

    least: int
    slack_s: float
    paid_s: float


def count_missing(
    fleet: Inventory, asked: Iterable[ZoneId], pricing: Pricing, odds: Odds, floor: int
) -> Missing:
    """Return what is missing.

    Args:
        fleet: The nodes.
        asked: Zones of the spot nodes that are asked for now, one each.
        pricing: What counts.
        odds: What may happen.
        floor: Nodes that are wanted regardless.
    """
    coming, there = fleet.spot + Counter(asked), len(fleet.on_demand)
    wanted = max(pricing.cover(fleet.confirmed, odds).n_on_demand, floor - fleet.confirmed.total())
    hoped = max(pricing.cover(coming, odds).n_on_demand, floor - coming.total())
    missing = max(0, wanted - there)
    certain = min(missing, max(0, hoped - there))
    without = pricing.shortage(fleet.confirmed, there + certain, odds)
    averted = without - pricing.shortage(fleet.confirmed, there + missing, odds)
    return Missing(wanted, certain, missing - certain, averted * pricing.shortage_usd_per_h)


def choose_spare(
    fleet: Inventory, pricing: Pricing, odds: Odds, wanted: int, keeping: Keeping, now_s: float
) -> list[Node]:
    """Return the on-demand nodes that may end: the newest first, ready ones before others."""
    spare = len(fleet.on_demand) - wanted
    paid = [node for node in fleet.on_demand if now_s - node.started_s >= keeping.paid_s]
    n_ready = sum(node.is_ready for node in fleet.on_demand)
    spare_ready = n_ready - pricing.cover(fleet.ready, odds).n_on_demand
    n_left = fleet.ready.total() + n_ready - keeping.least
    ready = newest_first(node for node in paid if node.is_ready)
    ended = ready[: max(0, min(spare, spare_ready, n_left))]
    starting = newest_first(node for node in paid if not node.is_ready)
    return ended + [
        node
        for node in starting[: max(0, spare - len(ended))]
        if fleet.count_ready_by(node, keeping.slack_s) >= keeping.least
    ]
