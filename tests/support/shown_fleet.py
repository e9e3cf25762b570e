"""What `arriero fleet up` shows of four nodes, of which one was just taken back. Runs until killed.

A process of its own, as the command is: Ray reads once in a process how it is to prove itself.

python -m tests.support.shown_fleet HEAD_ADDRESS
"""

import sys
import threading
from pathlib import Path

from cluster.controller import Step
from cluster.policy.fleet import Market, NodeId, Plan, Reclaimed, ZoneId
from cluster.policy.reconcile import Entry
from serve_app.fleet_watch import watch_fleet

_ZONE = ZoneId("aws/us-east-1/us-east-1f")
_NODES: tuple[tuple[Market, float | None], ...] = (
    ("on-demand", 9.0),
    ("spot", 9.0),
    ("spot", 9.0),
    ("spot", None),
)


def main(ray_head: str) -> None:
    """Shows it."""
    entries = tuple(
        Entry(NodeId(f"n{i}"), _ZONE, market, 0.0, 2.1, ready_s=ready_s)
        for i, (market, ready_s) in enumerate(_NODES)
    )
    with watch_fleet("tried", None, Path(), ray_head) as shown:
        shown.show(Step(entries, Plan((), (), 0.0, ""), (Reclaimed(_ZONE, 1, 3),), len(_NODES)))
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
