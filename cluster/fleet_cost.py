"""What a fleet's nodes cost, from what its controller has written down."""

from collections.abc import Iterable, Mapping

from cluster.fleet_book import Ended
from cluster.policy.fleet import NodeId, ZoneId
from cluster.policy.reconcile import Entry
from cluster.policy.spending import Stay


def stays_of(
    entries: Iterable[Entry], ended: Iterable[Ended], on_demand_usd_per_h: Mapping[ZoneId, float]
) -> dict[NodeId, Stay]:
    """Return the stays of all nodes that were ever up, by name.

    Args:
        entries: Nodes that are there.
        ended: Nodes that are gone.
        on_demand_usd_per_h: What an on-demand node costs now, by zone.
    """
    present = {each.id: _stay(each, on_demand_usd_per_h.get(each.zone), None) for each in entries}
    # One that is gone may still be in the book of a controller that died at that moment.
    past = {e.entry.id: _stay(e.entry, e.on_demand_usd_per_h, e.ended_s) for e in ended}
    return {name: stay for name, stay in (present | past).items() if stay is not None}


def _stay(entry: Entry, on_demand_usd_per_h: float | None, ended_s: float | None) -> Stay | None:
    if entry.up_s is None:
        return None
    stopped_s = entry.silent_s
    if entry.leaves_s is not None:
        stopped_s = entry.leaves_s if ended_s is None else min(entry.leaves_s, ended_s)
    dearer = entry.usd_per_h if on_demand_usd_per_h is None else on_demand_usd_per_h
    return Stay(
        entry.zone,
        entry.market,
        entry.usd_per_h,
        dearer,
        entry.up_s,
        entry.ready_s,
        stopped_s,
        ended_s,
    )
