"""Cuts a plan down to what a fleet may cost.

Inputs: the plan, the nodes, the offers, the cap, and what goes first.

The rule:
  - Launches that the cap does not allow are left out: the kind that goes first, then the others,
    the last of the plan first.
  - If what runs costs more than the cap, nodes of the kind that goes first end, then others.
  - The floor is above the cap.
  - Where launches are left out, spot nodes that fit take their places: those of all on-demand nodes
    if these go first, else the places that are left.

Invariants: `cap_is_kept`, `floor_is_kept` and `room_is_filled` of cluster.policy.placement.

Source: our own.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.policy.fleet import End, Launch, Market, Node, Offer, Plan, ZoneId


@dataclass(frozen=True)
class Budget:
    """What a fleet may cost.

    Attributes:
        usd_per_h: None for no cap.
        shed_first: The market whose nodes go first when the cap is reached: `on-demand` keeps most
            nodes, `spot` keeps those that stay.
    """

    usd_per_h: float | None = None
    shed_first: Literal["spot", "on-demand"] = "on-demand"


def shed(
    plan: Plan,
    nodes: Sequence[Node],
    offers: Mapping[ZoneId, Offer],
    budget: Budget,
    floor: int,
    target: int,
    zones: Sequence[ZoneId],
) -> Plan:
    """Return the plan within the budget.

    Args:
        plan: What would be done without one.
        nodes: All that are paid for.
        offers: All zones' prices.
        budget: The cap, and what goes first.
        floor: Nodes up to which the cap does not count.
        target: Nodes up to which spot ones take the places of launches that do not fit.
        zones: Where spot nodes may be asked for, the best first.
    """
    cap = budget.usd_per_h
    if cap is None:
        return plan
    ended = {end.node for end in plan.ends}
    kept = [node for node in nodes if node.id not in ended]
    cost = sum(price_of(offers[node.zone], node.market) for node in kept)
    ends = list(plan.ends)
    for node in sorted(kept, key=lambda n: _shedding_order(n, budget)):
        if cost <= cap + 1e-9 or len(kept) <= floor:
            break
        kept.remove(node)
        ends.append(End(node.id, f"the budget is {cap:g} $/h"))
        cost -= price_of(offers[node.zone], node.market)
    room = _Room(offers, cap - cost, floor - len(kept))
    wanted = sorted(plan.launches, key=lambda launch: launch.market == budget.shed_first)
    launches = room.take(wanted)
    if len(launches) < len(wanted):
        most = min(target - len(kept), len(wanted))
        held = Counter(node.zone for node in kept)
        if budget.shed_first == "on-demand":
            spot = [launch for launch in launches if launch.market == "spot"]
            filled = room.fill(spot, most, held, zones)
            launches = room.take([*filled, *wanted[len(spot) :]])[: len(wanted)]
        else:
            launches = room.fill(launches, most, held, zones)
    return Plan(tuple(launches), tuple(ends), plan.shortage, plan.reason)


@dataclass(frozen=True)
class _Room:
    """What a budget has left.

    Attributes:
        offers: All zones' prices.
        usd_per_h: Money; may be below 0.
        n_regardless: Nodes that may be launched whatever they cost.
    """

    offers: Mapping[ZoneId, Offer]
    usd_per_h: float
    n_regardless: int

    def take(self, launches: Iterable[Launch]) -> list[Launch]:
        """Return those that fit, each after those before it."""
        taken: list[Launch] = []
        for launch in launches:
            price = price_of(self.offers[launch.zone], launch.market)
            if price <= self._left(taken) + 1e-9 or len(taken) < self.n_regardless:
                taken.append(launch)
        return taken

    def fill(
        self,
        launches: Sequence[Launch],
        most: int,
        held: Counter[ZoneId],
        zones: Sequence[ZoneId],
    ) -> list[Launch]:
        """Return the launches and spot nodes that fit besides, up to `most`, spread over zones."""
        filled, counts = list(launches), held + Counter(launch.zone for launch in launches)
        while len(filled) < most:
            left = self._left(filled) + 1e-9
            fitting = [z for z in zones if price_of(self.offers[z], "spot") <= left]
            if not fitting:
                break
            zone = min(fitting, key=lambda z: counts[z])
            counts[zone] += 1
            filled.append(Launch(zone, "spot", "what the budget has room for"))
        return filled

    def _left(self, launches: Iterable[Launch]) -> float:
        prices = (price_of(self.offers[one.zone], one.market) for one in launches)
        return self.usd_per_h - sum(prices)


def price_of(offer: Offer, market: Market) -> float:
    """Return a node's US dollars an hour; 0 where the zone no longer says."""
    price = offer.spot_usd_per_h if market == "spot" else offer.on_demand_usd_per_h
    return price or 0.0


def _shedding_order(node: Node, budget: Budget) -> tuple[bool, bool, float, str]:
    return (node.market != budget.shed_first, node.is_ready, -node.started_s, node.id)
