"""Reads what Ray's head tells autoscalers: what waits, what is free, who works."""

from collections.abc import Iterable, Iterator
from typing import Any

from cluster.policy.demand import Demand, Resources
from cluster.policy.fleet import NodeId

_OWN = ("node:", "memory", "object_store_memory")
"""What each node has of itself: it tells nothing of what serves there."""


def read_demand(state: Any, label: str) -> Demand:
    """Return the demand.

    Args:
        state: Ray's ClusterResourceState.
        label: Of Ray nodes, with their name in the fleet.
    """
    working: set[NodeId] = set()
    room: list[Resources] = []
    shape: Resources | None = None
    for node in _staying(state):
        name = node.labels.get(label)
        total, free = dict(node.total_resources), dict(node.available_resources)
        works = _works(total, free)
        if name is not None:
            shape = {key: amount for key, amount in total.items() if not key.startswith("node:")}
            working |= {NodeId(name)} if works else set()
        if name is None or works:
            room.append(free)
    waiting = (*_single(state), *_groups(state))
    return Demand(waiting, tuple(room), frozenset(working), shape)


def _staying(state: Any) -> Iterator[Any]:
    """Yield the nodes that are there and do not drain."""
    from ray.core.generated import autoscaler_pb2 as generated

    status: Any = generated
    for node in state.node_states:
        if node.status in (status.NodeStatus.Value("RUNNING"), status.NodeStatus.Value("IDLE")):
            yield node


def _works(total: Resources, free: Resources) -> bool:
    held = (name for name, amount in total.items() if free.get(name, 0.0) < amount)
    return any(not name.startswith(_OWN) for name in held)


def _single(state: Any) -> Iterator[Resources]:
    """Yield what tasks and actors wait for."""
    for each in state.pending_resource_requests:
        for _ in range(each.count):
            yield dict(each.request.resources_bundle)


def _groups(state: Any) -> Iterator[Resources]:
    """Yield what placement groups wait for; what has to be on one node together is one."""
    for group in state.pending_gang_resource_requests:
        bundles = [dict(request.resources_bundle) for request in group.requests]
        yield from [_sum(bundles)] if "STRICT_PACK" in group.details else bundles


def _sum(bundles: Iterable[Resources]) -> Resources:
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0.0) + amount
    return total
