"""Prices spot nodes together with the on-demand nodes that they need beside them.

Inputs: spot nodes by zone, what may happen to them, the price of an on-demand node, and the price
of being short of the target.

The rule: as many on-demand nodes as make their price and the expected price of a shortage least.

Invariants:
  1. more_spot_needs_no_dearer_cover: a further spot node, free of charge, never raises the price.
  2. no_count_is_cheaper: no other number of on-demand nodes is.

Source: the newsvendor's rule, over the chances of `shortage.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.policy.fleet import ZoneId
from cluster.policy.shortage import Odds, chance_of_fewer


@dataclass(frozen=True)
class Cover:
    """On-demand nodes beside some spot nodes.

    Attributes:
        n_on_demand: How many.
        usd_per_h: Their price and the expected price of a shortage, without the spot nodes' price.
        shortage: Chance of a shortage within one start-up.
    """

    n_on_demand: int
    usd_per_h: float
    shortage: float


@dataclass(frozen=True)
class Pricing:
    """What counts at one time.

    Attributes:
        target: Nodes that are to serve.
        on_demand_usd_per_h: Of one on-demand node.
        shortage_usd_per_h: Of being short all the time.
    """

    target: int
    on_demand_usd_per_h: float
    shortage_usd_per_h: float

    def cover(self, held: Mapping[ZoneId, int], odds: Odds) -> Cover:
        """Return the cheapest number of on-demand nodes beside the spot nodes held."""
        losses, n_spot = odds.count_losses(held), sum(held.values())
        best = Cover(0, math.inf, 1.0)
        for count in range(self.target + 1):
            shortage = chance_of_fewer(losses, n_spot + count, self.target)
            total = count * self.on_demand_usd_per_h + self.shortage_usd_per_h * shortage
            if total < best.usd_per_h - 1e-9:
                best = Cover(count, total, shortage)
        return best

    def shortage(self, held: Mapping[ZoneId, int], n_on_demand: int, odds: Odds) -> float:
        """Return the chance of a shortage with so many on-demand nodes."""
        n_nodes = sum(held.values()) + n_on_demand
        return chance_of_fewer(odds.count_losses(held), n_nodes, self.target)
