"""Hears from Ray that a node is to go, and how soon.

`ray drain-node` says so, by an operator or by `cluster.reclaim_agent` at a cloud's notice. Serve
then starts replacements elsewhere and gives an old replica the time that its deployment always
has, which may be longer than the node lives. So each engine asks Ray itself about its own node, and
each gateway about the head's, with which a cell ends.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

ObserveDraining = Callable[[], Mapping[str, int]]
"""Returns nodes that drain, by id in hexadecimal digits, and when each is gone: milliseconds of
Unix time, 0 where nothing was said. Blocks; may raise whatever Ray does while its head is away."""

HEAD = "head"
"""In place of an id, where the head's node is meant, whichever it is."""
_LOOK_EVERY_S = 1.0
_ASK_TIMEOUT_S = 5.0


async def wait_for_notice(
    node_id: str, observe: ObserveDraining, clock: Callable[[], float] = time.time
) -> float:
    """Returns once a node drains, with the seconds that it has; infinity if that was not said."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            draining = await asyncio.to_thread(observe)
        except Exception as error:
            logger.debug("Ray does not say which nodes drain: %s", error)
            continue
        if node_id in draining:
            ends_s = draining[node_id] / 1000.0
            left_s = max(0.0, ends_s - clock()) if ends_s else math.inf
            logger.warning("Node %s drains; %.0f s are left.", node_id, left_s)
            return left_s


def observe_by_ray() -> ObserveDraining:
    """Returns how to ask the cluster that this process belongs to."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Serve takes it from there, too

    client = GcsClient(address=ray.get_runtime_context().gcs_address)

    def observe() -> Mapping[str, int]:
        found: dict[str, int] = client.get_draining_nodes(timeout=_ASK_TIMEOUT_S)
        return found

    return observe


def observe_head_by_ray() -> ObserveDraining:
    """Returns how to ask about the head of the cluster that this process belongs to: as `HEAD`."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # Serve takes it from there, too

    client = GcsClient(address=ray.get_runtime_context().gcs_address)

    def observe() -> Mapping[str, int]:
        draining: dict[str, int] = client.get_draining_nodes(timeout=_ASK_TIMEOUT_S)
        if not draining:
            return {}
        nodes = client.get_all_node_info(timeout=_ASK_TIMEOUT_S).items()
        heads = {node_id.hex() for node_id, info in nodes if info.is_head_node}
        ends_ms = [ends for node_id, ends in draining.items() if node_id in heads]
        return {HEAD: ends_ms[0]} if ends_ms else {}

    return observe
