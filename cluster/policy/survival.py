"""Estimates from a fleet's own nodes how soon each zone will take its spot nodes back.

Inputs: where the fleet has nodes, what was taken, which launches failed. Nothing is known of a
zone where the fleet has nothing, except through a launch.

The rule:
  - A zone that has kept its nodes for `age` hours takes some at rate floor + a / (youth + age).
  - a is learned: reclaims / integral of 1 / (youth + age), of the zone, drawn to the fleet's.
  - A reclaim sets the zone's age to zero and warns its region for a while.

Invariants:
  1. rates_are_positive: and finite, whatever happened.
  2. survivors_are_trusted: while nothing is taken no zone's rate rises.
  3. reclaims_are_remembered: right after a reclaim the zone's rate is above what it was before.
  4. neighbours_are_warned: a reclaim adds to rates in its region at once, and to no other region's
     beyond what it teaches about all zones.

Source: spot nodes' lifetimes are heavy-tailed, their hazard falls about as 1 / age. The learned
factor is the mean of the gamma posterior of such a process; the warning is the self-exciting term
of Hawkes (Biometrika 1971), cut down to the last event.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.policy.fleet import Offer, ZoneId

_HOUR_S = 3600.0


@dataclass(frozen=True)
class SurvivalSettings:
    """What is believed before anything has been seen. Times are hours, rates are per hour.

    Attributes:
        intensity: a, before anything has been seen.
        weight: How many expected reclaims it takes to count as much as that belief.
        zone_weight: How many it takes a zone to count as much as the fleet.
        youth_h: Age that a zone is given from the start.
        head_start_h: Age that a zone has besides, which no launch has found shut so far: it has
            probably been open for long.
        floor_per_h: Rate that no age falls below.
        warning_per_h: Rate that a reclaim adds at once to the other zones of its region.
        warning_h: Time after which a third of that is left.
        collapse: Chance that a reclaim takes all nodes of its zone rather than one.
        collapse_weight: How many reclaims it takes to count as much as that belief.
    """

    intensity: float = 0.4
    weight: float = 8.0
    zone_weight: float = 4.0
    youth_h: float = 0.4
    head_start_h: float = 1.0
    floor_per_h: float = 0.015
    warning_per_h: float = 0.3
    warning_h: float = 0.4
    collapse: float = 0.6
    collapse_weight: float = 3.0


@dataclass
class _Zone:
    region: str
    held_since_s: float | None = None
    head_start_h: float = 0.0
    was_shut: bool = False
    reclaims: int = 0
    past_exposure: float = 0.0
    """Integral of 1 / (youth + age) over all times before the present one."""


class Survival:
    """Reclaim rates of zones, learned from what happens to a fleet's nodes."""

    def __init__(self, settings: SurvivalSettings, offers: Iterable[Offer]) -> None:
        self._settings = settings
        self._zones = {offer.zone: _Zone(offer.region) for offer in offers}
        self._warned_s: dict[str, dict[ZoneId, float]] = {}
        self._shares_taken: list[float] = []

    def see(self, held_since_s: Mapping[ZoneId, float], now_s: float) -> None:
        """Note where the fleet has nodes.

        Args:
            held_since_s: By zone, when the oldest of its nodes was started.
            now_s: Time.
        """
        for name, zone in self._zones.items():
            since_s = held_since_s.get(name)
            if since_s is None:
                self._leave(zone, now_s)
            elif zone.held_since_s is None:
                zone.head_start_h = 0.0 if zone.was_shut else self._settings.head_start_h
                zone.held_since_s, zone.was_shut = since_s, False

    def refuse(self, name: ZoneId) -> None:
        """Note that a zone had no room: when it opens, it opens anew."""
        self._zones[name].was_shut = True

    def reclaim(self, name: ZoneId, n_nodes: int, n_held: int, now_s: float) -> None:
        """Note that a cloud took some of a zone's nodes."""
        zone = self._zones[name]
        self._leave(zone, now_s)
        zone.reclaims += 1
        zone.was_shut = True
        if n_nodes < n_held:
            zone.held_since_s, zone.head_start_h = now_s, 0.0
        self._warned_s.setdefault(zone.region, {})[name] = now_s
        if n_held > 1:
            self._shares_taken.append((n_nodes - 1) / (n_held - 1))

    def estimate_rates_per_h(
        self, now_s: float, longest_wait_h: float = 0.0
    ) -> dict[ZoneId, float]:
        """Return how often each zone is expected to take nodes.

        Args:
            now_s: Time.
            longest_wait_h: 0 for the rates of now. Else for those at the time when half of such
                zones would have taken some, at most so much later: what a launch may count on.
        """
        fleet = self._fleet_intensity(now_s)
        return {
            name: self._own_rate(zone, fleet, now_s, longest_wait_h)
            + self._warning(name, zone.region, now_s)
            for name, zone in self._zones.items()
        }

    def estimate_collapse(self) -> float:
        """Return the chance that a reclaim takes all nodes of its zone, not just one."""
        weight, known = self._settings.collapse_weight, self._shares_taken
        return (weight * self._settings.collapse + sum(known)) / (weight + len(known))

    def _own_rate(self, zone: _Zone, fleet: float, now_s: float, longest_wait_h: float) -> float:
        weight = self._settings.zone_weight
        intensity = (weight * fleet + zone.reclaims) / (weight + self._exposure(zone, now_s))
        age_h = self._settings.youth_h + self._age_h(zone, now_s)
        # Half of what falls as age**-intensity is left when age has grown 2**(1/intensity) times.
        growth = math.pow(2.0, min(1.0 / intensity, 30.0)) - 1.0
        age_h += min(longest_wait_h, age_h * growth)
        return self._settings.floor_per_h + intensity / age_h

    def _fleet_intensity(self, now_s: float) -> float:
        zones, weight = self._zones.values(), self._settings.weight
        reclaims = sum(zone.reclaims for zone in zones)
        exposure = sum(self._exposure(zone, now_s) for zone in zones)
        return (weight * self._settings.intensity + reclaims) / (weight + exposure)

    def _exposure(self, zone: _Zone, now_s: float) -> float:
        if zone.held_since_s is None:
            return zone.past_exposure
        held_h = max(0.0, now_s - zone.held_since_s) / _HOUR_S
        start_h = self._settings.youth_h + zone.head_start_h
        return zone.past_exposure + math.log1p(held_h / start_h)

    def _age_h(self, zone: _Zone, now_s: float) -> float:
        if zone.held_since_s is None:
            return 0.0 if zone.was_shut else self._settings.head_start_h
        return zone.head_start_h + max(0.0, now_s - zone.held_since_s) / _HOUR_S

    def _leave(self, zone: _Zone, now_s: float) -> None:
        zone.past_exposure = self._exposure(zone, now_s)
        zone.held_since_s = None

    def _warning(self, name: ZoneId, region: str, now_s: float) -> float:
        reclaims_s = self._warned_s.get(region, {})
        last_s = max((s for other, s in reclaims_s.items() if other != name), default=-math.inf)
        ago_h = (now_s - last_s) / _HOUR_S
        return self._settings.warning_per_h * math.exp(-ago_h / self._settings.warning_h)
