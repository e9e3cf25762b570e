"""Decides which nodes a fleet starts and ends: where, and on which market.

Inputs: the zones' offers, the nodes that are paid for, and what has happened to nodes and launches.
Time comes in as `now_s`; there is no chance in it.

The rule:
  - A shortage has a price: one on-demand node is worth it where it averts 1 - goal of all time.
  - Spot nodes are added, and spare ones ended, where that lowers price plus expected shortage, each
    zone judged by how it will be when half of such nodes would be gone.
  - On-demand nodes cover what spot nodes, judged by how zones are now, leave open; one ends only
    when those that are ready do without it.

Invariants:
  1. target_is_asked_for: with open doors and no cap, confirmed nodes and launches reach the target.
  2. floor_is_kept: no plan ends a ready node if fewer ready ones than the floor would be left.
  3. covered_before_ended: without a cap, no plan takes ready nodes from the target to below it.
  4. closed_doors_are_left_alone: no launch goes where one was refused a moment ago.
  5. cap_is_kept: a plan never raises the price above the cap, except up to the floor.
  6. plans_settle: with nothing refused or taken, plans soon have nothing left to do.
  7. ties_are_broken_by_name: equal zones and nodes are taken in the order of their names.

Source: our own. Over-provision, spread and fall-back are SpotHedge's aims (Mao et al., SkyServe,
EuroSys 2025, section 4); here a count follows from rates that are learned, where SpotHedge has a
constant, and zones are told apart by what happened in them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cluster.policy.budget import Budget, shed
from cluster.policy.calibration import Calibration
from cluster.policy.cover import Cover, Pricing
from cluster.policy.doors import Doors, DoorSettings
from cluster.policy.fleet import (
    End,
    Happening,
    Launch,
    Launched,
    Node,
    Offer,
    Plan,
    Reclaimed,
    Refused,
    ZoneId,
)
from cluster.policy.inventory import Inventory, newest_first
from cluster.policy.shortage import Odds
from cluster.policy.survival import Survival, SurvivalSettings

_LEAST_GAIN = 0.05
"""Part of an on-demand node's price that a change of spot nodes must save, so that none dithers."""


@dataclass(frozen=True)
class PlacementSettings:
    """What a fleet is kept at.

    Attributes:
        target: Nodes that are to serve.
        start_up_s: From a launch to a node that serves, as measured.
        goal: Share of time with the target's nodes.
        floor: Ready nodes below which nothing is ended and no cap counts.
        most_spare: Spot nodes beyond the target at most.
        caution: Multiplies a shortage's price. By it the rates' errors are made up for.
        reaction_s: From a reclaim to the launch that makes up for it.
        notice_s: Notice of a reclaim that can be relied on: so much sooner a launch begins.
        settle_h: Longest age at which a launch's zone is judged.
        together: Chance that zones of a region are hit in one go.
        trial_s: Time that a spot node is kept after it is ready, wanted or not.
        budget: What the fleet may cost.
    """

    target: int
    start_up_s: float
    goal: float = 0.999
    floor: int = 0
    most_spare: int = 3
    caution: float = 0.3
    reaction_s: float = 30.0
    notice_s: float = 0.0
    settle_h: float = 2.0
    together: float = 0.2
    trial_s: float = 600.0
    budget: Budget = field(default_factory=Budget)
    doors: DoorSettings = field(default_factory=DoorSettings)
    survival: SurvivalSettings = field(default_factory=SurvivalSettings)


class SpotPlacement:
    """Spot first, as many and where they last; on-demand nodes for the rest."""

    def __init__(self, settings: PlacementSettings, offers: Iterable[Offer]) -> None:
        self._settings = settings
        self._offers = {offer.zone: offer for offer in sorted(offers, key=lambda o: o.zone)}
        self._regions = {zone: offer.region for zone, offer in self._offers.items()}
        self._survival = Survival(settings.survival, self._offers.values())
        self._doors = Doors(settings.doors, self._offers.values())
        self._calibration = Calibration()
        gap_s = settings.start_up_s + settings.reaction_s - settings.notice_s
        self._horizon_s = max(settings.reaction_s, gap_s)

    def observe(self, happenings: Sequence[Happening], now_s: float) -> None:
        """Learn from what has happened since the last call."""
        for happening in happenings:
            match happening:
                case Reclaimed(zone, n_nodes, n_held):
                    self._survival.reclaim(zone, n_nodes, n_held, now_s)
                case Launched(zone, market):
                    self._doors.admit(zone, market)
                case Refused(zone, market, reason):
                    self._doors.refuse(happening, now_s)
                    if market == "spot" and reason == "stock":
                        self._survival.refuse(zone)

    def plan(self, nodes: Sequence[Node], now_s: float) -> Plan:
        """Return what to do.

        Args:
            nodes: All that are paid for or asked for, except those that are being ended.
            now_s: Time.
        """
        fleet = Inventory.of(nodes)
        self._survival.see(fleet.held_since_s, now_s)
        now, later = self._odds(now_s, 0.0), self._odds(now_s, self._settings.settle_h)
        self._calibrate(fleet, now, now_s)
        pricing = self._price(now_s)
        adds = self._choose_spot(fleet, pricing, later, now_s)
        cover = pricing.cover(fleet.confirmed, now)
        launches = [*adds, *self._choose_on_demand(fleet, cover, now_s)]
        ends: list[End] = []
        if not launches:
            ends = self._end_on_demand(fleet, pricing, now, cover.n_on_demand)
            ends = ends or self._end_spot(fleet, pricing, now, later, now_s)
        plan = Plan(tuple(launches), tuple(ends), cover.shortage, self._explain(fleet, cover))
        return shed(plan, nodes, self._offers, self._settings.budget, self._settings.floor)

    def _odds(self, now_s: float, settle_h: float) -> Odds:
        rates = self._survival.estimate_rates_per_h(now_s, settle_h)
        chances = {
            zone: -math.expm1(-rate * self._horizon_s / 3600.0) for zone, rate in rates.items()
        }
        collapse = self._survival.estimate_collapse()
        return Odds(self._regions, chances, collapse, self._settings.together)

    def _calibrate(self, fleet: Inventory, odds: Odds, now_s: float) -> None:
        n_on_demand = sum(node.is_ready for node in fleet.on_demand)
        is_short = fleet.ready.total() + n_on_demand < self._settings.target
        pricing = Pricing(self._settings.target, 0.0, 0.0)
        chance = None if is_short else pricing.shortage(fleet.ready, n_on_demand, odds)
        self._calibration.look(chance, self._horizon_s, now_s)

    def _price(self, now_s: float) -> Pricing:
        settings, usd_per_h = self._settings, self._on_demand_usd_per_h(now_s)
        factor = settings.caution * self._calibration.factor
        return Pricing(settings.target, usd_per_h, factor * usd_per_h / (1.0 - settings.goal))

    def _choose_spot(
        self, fleet: Inventory, pricing: Pricing, odds: Odds, now_s: float
    ) -> list[Launch]:
        """Add the best zone again and again, and keep as much of that as pays."""
        zones = [zone for zone in self._offers if self._may_ask(zone, now_s)]
        held = Counter(fleet.spot)
        least = pricing.cover(held, odds).usd_per_h
        least -= _LEAST_GAIN * pricing.on_demand_usd_per_h
        chosen: list[ZoneId] = []
        n_best, paid = 0, 0.0
        most = self._settings.target + self._settings.most_spare - held.total()
        cheapest = min(map(self._spot_usd_per_h, zones), default=0.0)
        for _ in range(most if zones else 0):
            if paid + cheapest >= least:
                break
            total, zone = self._add_one(held, zones, pricing, odds)
            chosen.append(zone)
            if paid + total < least - 1e-9:
                n_best, least = len(chosen), paid + total
            paid += self._spot_usd_per_h(zone)
        return [Launch(zone, "spot", "cheapest cover") for zone in chosen[:n_best]]

    def _add_one(
        self, held: Counter[ZoneId], zones: Sequence[ZoneId], pricing: Pricing, odds: Odds
    ) -> tuple[float, ZoneId]:
        """Add a node to the zone where it does most; return the new price and the zone."""
        priced = []
        for zone in zones:
            held[zone] += 1
            total = pricing.cover(held, odds).usd_per_h + self._spot_usd_per_h(zone)
            held[zone] -= 1
            priced.append((total, odds.chances[zone], held[zone], zone))
        total, _, _, zone = min(priced)
        held[zone] += 1
        return total, zone

    def _choose_on_demand(self, fleet: Inventory, cover: Cover, now_s: float) -> list[Launch]:
        zone = self._on_demand_zone(now_s)
        settings = self._settings
        wanted = max(cover.n_on_demand, settings.floor - sum(fleet.confirmed.values()))
        missing = wanted - len(fleet.on_demand)
        if zone is None or missing <= 0:
            return []
        return [Launch(zone, "on-demand", f"spot is short, {wanted} wanted")] * missing

    def _end_on_demand(
        self, fleet: Inventory, pricing: Pricing, odds: Odds, wanted: int
    ) -> list[End]:
        """End those beyond what all nodes need, and of the ready ones beyond what these need."""
        spare = len(fleet.on_demand) - wanted
        ready = [node for node in fleet.on_demand if node.is_ready]
        spare_ready = len(ready) - pricing.cover(fleet.ready, odds).n_on_demand
        least = max(self._settings.target, self._settings.floor)
        n_ready = sum(fleet.ready.values()) + len(ready)
        ended = newest_first(ready)[: max(0, min(spare, spare_ready, n_ready - least))]
        starting = [node for node in fleet.on_demand if not node.is_ready]
        ended += [
            node
            for node in newest_first(starting)[: max(0, spare - len(ended))]
            if fleet.count_ready_by(node, self._settings.reaction_s) >= least
        ]
        return [End(node.id, "spot is back") for node in ended]

    def _end_spot(
        self, fleet: Inventory, pricing: Pricing, now: Odds, later: Odds, now_s: float
    ) -> list[End]:
        """End the one ready node that is worth least, if it is not worth its price."""
        settings, n_on_demand = self._settings, sum(node.is_ready for node in fleet.on_demand)
        least = max(settings.target, settings.floor)
        if sum(fleet.ready.values()) + n_on_demand <= least:
            return []
        candidates = []
        for zone in (zone for zone, count in fleet.ready.items() if count):
            gain = self._gain_by_ending(fleet, zone, n_on_demand, pricing, now, later)
            if gain > 0:
                candidates.append((-gain, zone))
        if not candidates:
            return []
        node = newest_first([n for n in fleet.ready_spot if n.zone == min(candidates)[1]])[0]
        if now_s - node.started_s < settings.start_up_s + settings.trial_s:
            return []
        return [End(node.id, "spare")]

    def _gain_by_ending(
        self,
        fleet: Inventory,
        zone: ZoneId,
        n_on_demand: int,
        pricing: Pricing,
        now: Odds,
        later: Odds,
    ) -> float:
        """Return the US dollars an hour saved; below 0 where the node would be wanted again."""
        price = self._spot_usd_per_h(zone)
        fewer, fewer_ready = Counter(fleet.spot), Counter(fleet.ready)
        fewer[zone] -= 1
        fewer_ready[zone] -= 1
        lost_later = (
            pricing.cover(fewer, later).usd_per_h - pricing.cover(fleet.spot, later).usd_per_h
        )
        if lost_later > price * 0.9:
            return -1.0
        added = pricing.shortage(fewer_ready, n_on_demand, now)
        added -= pricing.shortage(fleet.ready, n_on_demand, now)
        return price * 0.6 - added * pricing.shortage_usd_per_h

    def _may_ask(self, zone: ZoneId, now_s: float) -> bool:
        has_spot = self._offers[zone].spot_usd_per_h is not None
        return has_spot and self._doors.is_open(zone, "spot", now_s)

    def _spot_usd_per_h(self, zone: ZoneId) -> float:
        return self._offers[zone].spot_usd_per_h or 0.0

    def _on_demand_zone(self, now_s: float) -> ZoneId | None:
        """Return where an on-demand node is cheapest; None where no door is open."""
        priced = [
            (offer.on_demand_usd_per_h, zone)
            for zone, offer in self._offers.items()
            if offer.on_demand_usd_per_h is not None
            and self._doors.is_open(zone, "on-demand", now_s)
        ]
        return min(priced)[1] if priced else None

    def _on_demand_usd_per_h(self, now_s: float) -> float:
        """Return the price to reckon with, also where on-demand nodes are out of stock."""
        zone = self._on_demand_zone(now_s)
        prices = [self._offers[zone].on_demand_usd_per_h] if zone else []
        known = [p for p in prices if p is not None] or [
            p
            for offer in self._offers.values()
            for p in (offer.on_demand_usd_per_h, offer.spot_usd_per_h)
            if p is not None
        ]
        return max(known)

    def _explain(self, fleet: Inventory, cover: Cover) -> str:
        zones = ", ".join(f"{zone} {count}" for zone, count in sorted(fleet.confirmed.items()))
        return (
            f"spot: {zones or 'none'}; on demand: {len(fleet.on_demand)} of {cover.n_on_demand}; "
            f"chance of a shortage within a start-up {cover.shortage:.2g}"
        )
