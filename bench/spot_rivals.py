"""The policies that `SpotPlacement` is compared with."""

import random
from collections import Counter
from collections.abc import Sequence

from cluster.policy.fleet import (
    End,
    Happening,
    Launch,
    Launched,
    Node,
    Offer,
    Plan,
    ZoneId,
)


class OnDemandOnly:
    """The target's nodes on demand."""

    def __init__(self, target: int, offers: Sequence[Offer]) -> None:
        self._target, self._zone = target, offers[0].zone

    def observe(self, happenings: Sequence[Happening], now_s: float) -> None:
        """Needs nothing."""

    def plan(self, nodes: Sequence[Node], now_s: float) -> Plan:
        """Fills up."""
        missing = self._target - len(nodes)
        return Plan((Launch(self._zone, "on-demand", "fill"),) * missing, (), 0.0, "fill")


class EvenSpread:
    """Spot only, each node where there are fewest; with one zone it is one-zone spot."""

    def __init__(self, target: int, offers: Sequence[Offer]) -> None:
        self._target, self._zones = target, [offer.zone for offer in offers]

    def observe(self, happenings: Sequence[Happening], now_s: float) -> None:
        """Needs nothing."""

    def plan(self, nodes: Sequence[Node], now_s: float) -> Plan:
        """Fills up, zone by zone."""
        held = Counter(node.zone for node in nodes)
        launches = []
        for _ in range(self._target - len(nodes)):
            zone = min(self._zones, key=lambda zone: held[zone])
            held[zone] += 1
            launches.append(Launch(zone, "spot", "fill"))
        return Plan(tuple(launches), (), 0.0, "fill")


class SpotHedge:
    """SkyServe's policy as published (Mao et al., EuroSys 2025, section 4)."""

    def __init__(self, target: int, extra: int, offers: Sequence[Offer], seed: int = 0) -> None:
        self._target, self._extra = target, extra
        self._prices = {offer.zone: offer.spot_usd_per_h or 0.0 for offer in offers}
        self._active = set(self._prices)
        self._on_demand = offers[0].zone
        self._rng = random.Random(seed)

    def observe(self, happenings: Sequence[Happening], now_s: float) -> None:
        """Moves zones between active and failed."""
        for happening in happenings:
            if isinstance(happening, Launched):
                self._active.add(happening.zone)
            else:
                self._active.discard(happening.zone)

    def plan(self, nodes: Sequence[Node], now_s: float) -> Plan:
        """Fills spot up to target and extra, on demand what is not ready of it."""
        spot = [node for node in nodes if node.market == "spot"]
        held = Counter(node.zone for node in spot)
        wanted = self._target + self._extra
        launches = []
        if len(spot) < wanted:  # one by one: where the next goes depends on how this one went
            launches.append(Launch(self._choose(held), "spot", "fill"))
        on_demand = [node for node in nodes if node.market == "on-demand"]
        need = min(self._target, max(0, wanted - sum(node.is_ready for node in spot)))
        launches += [Launch(self._on_demand, "on-demand", "short")] * (need - len(on_demand))
        ends = tuple(End(node.id, "spot is back") for node in on_demand[need:])
        return Plan(tuple(launches), ends, 0.0, "")

    def _choose(self, held: Counter[ZoneId]) -> ZoneId:
        if len(self._active) < 2:
            self._active = set(self._prices)
        free = [zone for zone in self._active if not held[zone]] or list(self._active)
        least = min(self._prices[zone] for zone in free)
        return self._rng.choice(sorted(zone for zone in free if self._prices[zone] == least))
