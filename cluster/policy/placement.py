"""Decides which nodes a fleet starts and ends: where, and on which market.

Inputs: the zones' offers, the nodes that are paid for, and what has happened to nodes and launches.
Time comes in as `now_s`; there is no chance in it.

The rule:
  - A shortage has a price: one on-demand node is worth it where it averts 1 - goal of all time.
  - Spot nodes are added, and ended, where that lowers price plus expected shortage, by how zones
    are now. A zone that opens is not waited for: it is looked at (`probes.py`) until it is safe.
  - On-demand nodes cover what spot nodes leave open; one ends when the ready ones need it not.
  - They wait for what clouds answer to spot launches where that pays (`answers.py`), and stay for
    as long as they have been paid for anyhow.

Invariants:
  1. target_is_asked_for: with open doors and no cap, nodes and launches reach the target; confirmed
     ones and launches do, unless it pays to wait for a cloud's answer.
  2. floor_is_kept: no plan ends a ready node if fewer ready ones than the floor would be left.
  3. covered_before_ended: without a cap, no plan takes ready nodes from the target to below it.
  4. closed_doors_are_left_alone: no launch goes where one was refused a moment ago.
  5. cap_is_kept: a plan never raises the price above the cap, except up to the floor.
  6. plans_settle: with nothing refused or taken, plans soon have nothing left to do.
  7. ties_are_broken_by_name: equal zones and nodes are taken in the order of their names.
  8. the_paid_stays: no on-demand node is ended before it has been there for what is paid at least,
     but for the cap.
  9. room_is_filled: below the target, no money is left under the cap for which a zone that may be
     asked would have a spot node.
  10. past_is_recalled: who recalls what another one saw learns the same.

Source: our own. Over-provision, spread and fall-back are SpotHedge's aims (Mao et al., SkyServe,
EuroSys 2025, section 4); here a count follows from rates that are learned, where SpotHedge has a
constant, and zones are told apart by what happened in them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cluster.policy.answers import Answers
from cluster.policy.budget import Budget, shed
from cluster.policy.calibration import Calibration
from cluster.policy.cover import Pricing
from cluster.policy.doors import Doors, DoorSettings
from cluster.policy.fallback import Keeping, Missing, choose_spare, count_missing
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
from cluster.policy.probes import Probes, ProbeSettings
from cluster.policy.reasons import explain_on_demand, explain_plan
from cluster.policy.shortage import Odds
from cluster.policy.survival import Survival, SurvivalSettings

_LEAST_GAIN = 0.05
"""Part of an on-demand node's price that more spot nodes must save, so that none dithers."""
_LEAST_USE = 0.9
"""Part of their own price that spot nodes must save to be kept."""


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
        together: Chance that zones of a region are hit in one go.
        paid_s: What a node is paid for at least, however soon it is ended.
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
    together: float = 0.2
    paid_s: float = 60.0
    budget: Budget = field(default_factory=Budget)
    doors: DoorSettings = field(default_factory=DoorSettings)
    probes: ProbeSettings = field(default_factory=ProbeSettings)
    survival: SurvivalSettings = field(default_factory=SurvivalSettings)


class SpotPlacement:
    """Spot first, as many and where they last; on-demand nodes for the rest."""

    def __init__(self, settings: PlacementSettings, offers: Iterable[Offer]) -> None:
        self._settings = settings
        self._offers = {offer.zone: offer for offer in sorted(offers, key=lambda o: o.zone)}
        self._regions = {zone: offer.region for zone, offer in self._offers.items()}
        self._survival = Survival(settings.survival, self._offers.values())
        self._doors = Doors(settings.doors, self._offers.values())
        self._probes = Probes(settings.probes)
        self._answers = Answers()
        least = max(settings.target, settings.floor)
        self._keeping = Keeping(least, settings.reaction_s, settings.paid_s)
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
                    if market == "spot":
                        self._survival.admit(zone, now_s)
                case Refused(zone, market, reason):
                    self._doors.refuse(happening, now_s)
                    if market == "spot":
                        self._answers.refuse()
                    if market == "spot" and reason == "stock":
                        self._survival.refuse(zone)

    def recall(self, nodes: Sequence[Node], now_s: float) -> None:
        """Learn from nodes that another policy's fleet had then, as `plan` would have."""
        self._see(nodes, now_s)

    def plan(self, nodes: Sequence[Node], now_s: float) -> Plan:
        """Return what to do.

        Args:
            nodes: All that are paid for or asked for, except those that are being ended.
            now_s: Time.
        """
        fleet, odds = self._see(nodes, now_s)
        probed = {node.zone for node in nodes if self._probes.is_one(node)}
        pricing = self._price(now_s)
        adds = self._choose_spot(fleet, pricing, odds, now_s)
        cover = pricing.cover(fleet.confirmed, odds)
        asked = [launch.zone for launch in adds]
        missing = count_missing(fleet, asked, pricing, odds, self._settings.floor)
        hanging = missing.hanging(pricing.on_demand_usd_per_h, self._settings.paid_s)
        is_awaited = self._answers.is_awaited(hanging, now_s)
        why = explain_on_demand(
            has_spot=bool(fleet.spot or adds),
            is_open=any(self._may_ask(zone, now_s) for zone in self._offers),
            n_wanted=missing.wanted,
        )
        launches = [*adds, *self._ask_on_demand(missing, is_awaited, why, now_s)]
        ends = self._probes.end(nodes, now_s)
        if not launches and not is_awaited:
            spare = choose_spare(fleet, pricing, odds, cover.n_on_demand, self._keeping, now_s)
            ends += [End(node.id, "spot is back") for node in spare]
            ends += [] if spare else self._end_spot(fleet, pricing, odds)
            launches += self._probe(fleet, probed, now_s)
        said = explain_plan(fleet, cover, is_awaited, self._doors.list_shut(now_s))
        plan = Plan(tuple(launches), tuple(ends), cover.shortage, said)
        settings, zones = self._settings, self._safest_first(odds, now_s)
        budget, floor, target = settings.budget, settings.floor, settings.target
        return shed(plan, nodes, self._offers, budget, floor, target, zones)

    def _see(self, nodes: Sequence[Node], now_s: float) -> tuple[Inventory, Odds]:
        fleet = Inventory.of([node for node in nodes if not self._probes.is_one(node)])
        self._survival.see(fleet.held_since_s, now_s)
        self._answers.see(nodes, now_s)
        odds = self._estimate_odds(now_s)
        self._calibrate(fleet, odds, now_s)
        return fleet, odds

    def _estimate_odds(self, now_s: float) -> Odds:
        rates = self._survival.estimate_rates_per_h(now_s)
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

    def _ask_on_demand(
        self, missing: Missing, is_awaited: bool, why: str, now_s: float
    ) -> list[Launch]:
        zone = self._on_demand_zone(now_s)
        count = missing.certain if is_awaited else missing.certain + missing.doubtful
        return [] if zone is None else [Launch(zone, "on-demand", why)] * count

    def _end_spot(self, fleet: Inventory, pricing: Pricing, odds: Odds) -> list[End]:
        """End the ready nodes of one zone that are worth least, if not worth their price."""
        n_on_demand = sum(node.is_ready for node in fleet.on_demand)
        spare = fleet.ready.total() + n_on_demand - self._keeping.least
        gains = [
            (-self._gain_by_ending(fleet, zone, n_ended, n_on_demand, pricing, odds), zone, n_ended)
            for zone, count in fleet.ready.items()
            for n_ended in range(1, min(count, spare) + 1)
        ]
        loss, zone, n_ended = min(gains, default=(0.0, ZoneId(""), 0))
        if loss >= 0:
            return []
        nodes = newest_first([node for node in fleet.ready_spot if node.zone == zone])
        return [End(node.id, "spare") for node in nodes[:n_ended]]

    def _gain_by_ending(
        self,
        fleet: Inventory,
        zone: ZoneId,
        n_ended: int,
        n_on_demand: int,
        pricing: Pricing,
        odds: Odds,
    ) -> float:
        """Return the US dollars an hour saved; below 0 where the nodes would be wanted again."""
        least = _LEAST_USE * n_ended * self._spot_usd_per_h(zone)
        ended = Counter({zone: n_ended})
        wanted = pricing.cover(fleet.spot - ended, odds).usd_per_h
        if wanted - pricing.cover(fleet.spot, odds).usd_per_h > least:
            return -1.0
        added = pricing.shortage(fleet.ready - ended, n_on_demand, odds)
        added -= pricing.shortage(fleet.ready, n_on_demand, odds)
        return least - added * pricing.shortage_usd_per_h

    def _probe(self, fleet: Inventory, probed: set[ZoneId], now_s: float) -> list[Launch]:
        """Look at zones without nodes, while on-demand nodes are paid for."""
        if not fleet.on_demand:
            return []
        zones = [z for z in self._offers if not fleet.spot[z] and self._may_ask(z, now_s)]
        return self._probes.choose(zones, self._survival.last_seen_s(), probed, now_s)

    def _may_ask(self, zone: ZoneId, now_s: float) -> bool:
        has_spot = self._offers[zone].spot_usd_per_h is not None
        return has_spot and self._doors.is_open(zone, "spot", now_s)

    def _safest_first(self, odds: Odds, now_s: float) -> list[ZoneId]:
        zones = [zone for zone in self._offers if self._may_ask(zone, now_s)]
        return sorted(zones, key=lambda z: (odds.chances[z], self._spot_usd_per_h(z), z))

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
        for offer in self._offers.values() if zone is None else ():
            prices += [offer.on_demand_usd_per_h, offer.spot_usd_per_h]
        return max((price for price in prices if price is not None), default=0.0)
