"""The placement policy as the settings, the prices and the past make it."""

import statistics
from collections.abc import Iterable, Sequence

from cluster.fleet_book import Ended, Seen, zones_of
from cluster.policy.budget import Budget
from cluster.policy.demand import DemandTarget
from cluster.policy.fleet import Offer, ZoneId
from cluster.policy.placement import PlacementSettings, SpotPlacement
from cluster.policy.probes import ProbeSettings
from cluster.policy.reconcile import Entry, Patience
from serve_app.config_fleet import FleetSettings

_MEASURED = 3
_LAST = 20


def make_policy(
    settings: FleetSettings,
    target: int,
    offers: Sequence[Offer],
    start_up_s: float,
    past: Sequence[Seen],
) -> SpotPlacement:
    """Return a policy for a target that knows what its predecessors have seen."""
    placement = PlacementSettings(
        target=target,
        start_up_s=start_up_s,
        goal=settings.goal,
        floor=settings.floor,
        most_spare=settings.most_spare,
        reaction_s=max(1.0, settings.period_s),
        notice_s=settings.notice_s,
        probes=ProbeSettings(settings.probe_every_s),
        budget=Budget(settings.budget.usd_per_h, settings.budget.shed_first),
    )
    policy = SpotPlacement(placement, offers)
    for seen in past:
        policy.observe(seen.happenings, seen.at_s)
        policy.plan(seen.nodes, seen.at_s)
    return policy


def make_aim(settings: FleetSettings, last: int) -> DemandTarget | None:
    """Return what moves the target, which was `last` before; None where it stays."""
    if settings.most_target is None:
        return None
    return DemandTarget(settings.target, settings.most_target, settings.idle_s, last)


def measure_start_up_s(
    entries: Iterable[Entry], ended: Iterable[Ended], otherwise_s: float
) -> float:
    """Return how long nodes took to serve, by the middle one of the last."""
    known = [*(each.entry for each in ended), *entries]
    served = sorted((e for e in known if e.ready_s is not None), key=lambda e: e.asked_s)[-_LAST:]
    took_s = [e.ready_s - e.asked_s for e in served if e.ready_s is not None and e.up_s is not None]
    return max(1.0, statistics.median(took_s)) if len(took_s) >= _MEASURED else otherwise_s


def add_unpriced(
    offers: Sequence[Offer], entries: Iterable[Entry], past: Sequence[Seen]
) -> list[Offer]:
    """Return the offers, and for zones that are known and have none one without prices."""
    known = {offer.zone for offer in offers}
    named = {str(entry.zone) for entry in entries} | zones_of(past)
    more = [Offer(ZoneId(z), z.split("/")[0], _region_of(z), None, None) for z in sorted(named)]
    return [*offers, *(offer for offer in more if offer.zone not in known)]


def patience_of(settings: FleetSettings) -> Patience:
    """Return how long the controller waits for things."""
    return Patience(
        grace_s=max(30.0, 3 * settings.period_s),
        start_s=settings.give_up_s,
        silence_s=max(30.0, 3 * settings.period_s),
    )


def _region_of(zone: str) -> str:
    return "/".join(zone.split("/")[:2])
