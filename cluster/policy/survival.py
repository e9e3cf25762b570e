"""Estimates from a fleet's own nodes how soon each zone will take its spot nodes back.

Inputs: where the fleet has nodes, what was taken, which launches failed. Nothing is known of a
zone where the fleet has nothing, except through a launch.

The rule:
  - A zone that has been open for `age` hours takes nodes at rate floor + a / (youth + age).
  - A zone without nodes of the fleet is open as long as it is seen to be often enough.
  - a is learned: reclaims / integral of 1 / (youth + age), of the zone, drawn to the fleet's.
  - A reclaim sets the zone's age to zero and warns its region for a while.

Invariants:
  1. rates_are_positive: and finite, whatever happened.
  2. survivors_are_trusted: while nothing is taken no rate rises where the fleet has nodes.
  3. reclaims_are_remembered: right after a reclaim the zone's rate is above what it was before.
  4. neighbours_are_warned: a reclaim adds to rates in its region at once, and to no other region's
     beyond what it teaches about all zones.
  5. looks_count: a zone that is seen open often enough is as old as one that the fleet stays in.

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
        memory_h: How long a zone is believed to stay open that nobody sees.
        memory_share: The same as a part of its age, where that is longer.
        floor_per_h: Rate that no age falls below.
        warning_per_h: Rate that a reclaim adds at once to the other zones of its region.
        warning_h: Time after which a third of that is left.
        collapse: Chance that a reclaim takes all nodes of its zone rather than one.
        collapse_weight: How many reclaims it takes to count as much as that belief.
    """

    intensity: float = 0.7
    weight: float = 4.0
    zone_weight: float = 2.0
    youth_h: float = 0.15
    head_start_h: float = 3.0
    memory_h: float = 0.6
    memory_share: float = 0.5
    floor_per_h: float = 0.01
    warning_per_h: float = 0.15
    warning_h: float = 0.4
    collapse: float = 0.8
    collapse_weight: float = 3.0


@dataclass
class _Zone:
    region: str
    open_since_s: float | None = None
    """Since when it is believed to have had room; None where that is not known."""
    seen_open_s: float = -math.inf
    was_shut: bool = False
    held_since_s: float | None = None
    reclaims: int = 0
    past_exposure: float = 0.0
    """Integral of 1 / (youth + age) over the times of all nodes before the present ones."""


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
                continue
            if zone.held_since_s is None:
                self._open(zone, since_s)
                zone.held_since_s = since_s
            zone.seen_open_s = now_s

    def admit(self, name: ZoneId, now_s: float) -> None:
        """Note that a zone gave a node, whether it is kept or not."""
        zone = self._zones[name]
        if zone.held_since_s is None:
            self._open(zone, now_s)
        zone.seen_open_s = now_s

    def refuse(self, name: ZoneId) -> None:
        """Note that a zone had no room: when it opens, it opens anew."""
        zone = self._zones[name]
        zone.was_shut = True
        if zone.held_since_s is None:
            zone.open_since_s = None

    def reclaim(self, name: ZoneId, n_nodes: int, n_held: int, now_s: float) -> None:
        """Note that a cloud took some of a zone's nodes."""
        zone = self._zones[name]
        self._leave(zone, now_s)
        zone.reclaims += 1
        zone.was_shut, zone.open_since_s = True, None
        if n_nodes < n_held:
            zone.held_since_s = zone.open_since_s = now_s
        self._warned_s.setdefault(zone.region, {})[name] = now_s
        if n_held > 1:
            self._shares_taken.append((n_nodes - 1) / (n_held - 1))

    def estimate_rates_per_h(self, now_s: float) -> dict[ZoneId, float]:
        """Return how often each zone is expected to take nodes."""
        fleet = self._fleet_intensity(now_s)
        return {
            name: self._own_rate(zone, fleet, now_s) + self._warning(name, zone.region, now_s)
            for name, zone in self._zones.items()
        }

    def last_seen_s(self) -> dict[ZoneId, float]:
        """Return when each zone was last known to have room."""
        return {name: zone.seen_open_s for name, zone in self._zones.items()}

    def estimate_collapse(self) -> float:
        """Return the chance that a reclaim takes all nodes of its zone, not just one."""
        weight, known = self._settings.collapse_weight, self._shares_taken
        return (weight * self._settings.collapse + sum(known)) / (weight + len(known))

    def _own_rate(self, zone: _Zone, fleet: float, now_s: float) -> float:
        weight = self._settings.zone_weight
        intensity = (weight * fleet + zone.reclaims) / (weight + self._exposure(zone, now_s))
        age_h = self._settings.youth_h + self._age_h(zone, now_s)
        return self._settings.floor_per_h + intensity / age_h

    def _fleet_intensity(self, now_s: float) -> float:
        zones, weight = self._zones.values(), self._settings.weight
        reclaims = sum(zone.reclaims for zone in zones)
        exposure = sum(self._exposure(zone, now_s) for zone in zones)
        return (weight * self._settings.intensity + reclaims) / (weight + exposure)

    def _exposure(self, zone: _Zone, now_s: float) -> float:
        if zone.held_since_s is None or zone.open_since_s is None:
            return zone.past_exposure
        ages_h = (max(0.0, s - zone.open_since_s) / _HOUR_S for s in (zone.held_since_s, now_s))
        first_h, last_h = (self._settings.youth_h + age_h for age_h in ages_h)
        return zone.past_exposure + math.log(max(first_h, last_h) / first_h)

    def _age_h(self, zone: _Zone, now_s: float) -> float:
        if zone.open_since_s is not None and self._is_remembered(zone, now_s):
            return max(0.0, now_s - zone.open_since_s) / _HOUR_S
        return 0.0 if zone.was_shut else self._settings.head_start_h

    def _is_remembered(self, zone: _Zone, now_s: float) -> bool:
        """Say whether a zone has been seen open not long ago, for its age."""
        if zone.held_since_s is not None:
            return True
        if zone.open_since_s is None:
            return False
        age_s = max(0.0, zone.seen_open_s - zone.open_since_s)
        longest_s = max(self._settings.memory_h * _HOUR_S, self._settings.memory_share * age_s)
        return now_s - zone.seen_open_s <= longest_s

    def _open(self, zone: _Zone, now_s: float) -> None:
        if not self._is_remembered(zone, now_s):
            head_start_h = 0.0 if zone.was_shut else self._settings.head_start_h
            zone.open_since_s = now_s - head_start_h * _HOUR_S
        zone.was_shut = False

    def _leave(self, zone: _Zone, now_s: float) -> None:
        zone.past_exposure = self._exposure(zone, now_s)
        zone.held_since_s = None

    def _warning(self, name: ZoneId, region: str, now_s: float) -> float:
        reclaims_s = self._warned_s.get(region, {})
        last_s = max((s for other, s in reclaims_s.items() if other != name), default=-math.inf)
        ago_h = (now_s - last_s) / _HOUR_S
        return self._settings.warning_per_h * math.exp(-ago_h / self._settings.warning_h)
