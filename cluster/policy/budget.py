"""Cuts a plan down to what a fleet may cost.

Inputs: the plan, the nodes, the offers, the cap, and what goes first.

The rule:
  - Launches that the cap does not allow are left out: the kind that goes first, then the others,
    the last of the plan first.
  - If what runs costs more than the cap, nodes of the kind that goes first end, then others.
  - The floor is above the cap.

Invariants: `cap_is_kept` and `floor_is_kept` of cluster.policy.placement.

Source: our own.
"""

from collections.abc import Mapping, Sequence
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
) -> Plan:
    """Return the plan within the budget."""
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
    launches: list[Launch] = []
    for launch in sorted(plan.launches, key=lambda launch: launch.market == budget.shed_first):
        price = price_of(offers[launch.zone], launch.market)
        if cost + price <= cap + 1e-9 or len(kept) + len(launches) < floor:
            launches.append(launch)
            cost += price
    return Plan(tuple(launches), tuple(ends), plan.shortage, plan.reason)


def price_of(offer: Offer, market: Market) -> float:
    """Return a node's US dollars an hour; 0 where the zone no longer says."""
    price = offer.spot_usd_per_h if market == "spot" else offer.on_demand_usd_per_h
    return price or 0.0


def _shedding_order(node: Node, budget: Budget) -> tuple[bool, bool, float, str]:
    return (node.market != budget.shed_first, node.is_ready, -node.started_s, node.id)
