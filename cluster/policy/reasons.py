"""Says in words why a plan is what it is, for people.

Inputs: the nodes, their cover, and what is not asked for after refusals.

The rule: what is held, what is wanted on demand, the chance of a shortage, what is shut and for how
long, the longest first and no more than a few.

Invariants:
  1. what_is_shut_is_named: where anything is shut, the words say what or how much of it.

Source: our own.
"""

from collections.abc import Sequence

from cluster.policy.cover import Cover
from cluster.policy.inventory import Inventory

_SHOWN = 5


def explain_plan(
    fleet: Inventory, cover: Cover, is_awaited: bool, shut: Sequence[tuple[str, float]]
) -> str:
    """Return why a plan is what it is.

    Args:
        fleet: The nodes.
        cover: On-demand nodes that they need beside them.
        is_awaited: Whether those wait for clouds' answers.
        shut: What is not asked for, and for how many seconds.
    """
    zones = ", ".join(f"{zone} {count}" for zone, count in sorted(fleet.confirmed.items()))
    waits = " once spot has been waited for" if is_awaited else ""
    return (
        f"spot: {zones or 'none'}; on demand: {len(fleet.on_demand)} of {cover.n_on_demand}"
        f"{waits}; chance of a shortage within a start-up {cover.shortage:.2g}{_say_shut(shut)}"
    )


def explain_on_demand(*, has_spot: bool, is_open: bool, n_wanted: int) -> str:
    """Return why a node is on demand.

    Args:
        has_spot: Whether there are spot nodes, or some are asked for.
        is_open: Whether any zone may be asked for a spot node.
        n_wanted: On-demand nodes that are wanted.
    """
    if not is_open:
        why = "no zone has more spot now"
    elif has_spot:
        why = "covers what spot may lose"
    else:
        why = "cheaper than spot that may be taken"
    return f"{why}, {n_wanted} wanted"


def _say_shut(shut: Sequence[tuple[str, float]]) -> str:
    if not shut:
        return ""
    said = [f"{name} ({max(1, round(left_s / 60))} min)" for name, left_s in shut[:_SHOWN]]
    more = [f"{len(shut) - _SHOWN} more"] if len(shut) > _SHOWN else []
    return f"; refused, so not asked for now: {', '.join(said + more)}"
