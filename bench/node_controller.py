"""Our controller over the nodes of `bench.node_loop`, as a process of its own.

    python -m bench.node_controller FILE [PERIOD_S]    FILE of `NodeCell.save`; runs until it ends

As `arriero fleet up` runs it, less what that says to people. All settings that take time are as
they are by default, but for `idle_s`, and `paid_s`: a minute that is paid for anyway is kept.
"""

import os
import sys
from pathlib import Path

from bench.node_cell import FLEET, MOST, ZONE, load_cell
from cluster.controller import Controller
from cluster.fleet_book import FleetBook
from cluster.members import RayMembers
from serve_app.config_fleet import FleetSettings


def make_settings(idle_s: float, period_s: float | None) -> FleetSettings:
    """Returns the settings: no node without demand. None means the default."""
    period = {} if period_s is None else {"period_s": period_s}
    return FleetSettings.model_validate(
        {
            "name": FLEET,
            "target": 0,
            "most_target": MOST,
            "idle_s": idle_s,
            "paid_s": 0.0,
            **period,
            "provisioner": {
                "kind": "local",
                "zones": [{"name": ZONE, "on_demand_usd_per_h": 1.0}],
            },
        }
    )


def main(file: Path, period_s: float | None = None) -> None:
    cell = load_cell(file)
    book = FleetBook(file.parent / "fleet")
    with book.hold(tries=50) as is_mine:
        if not is_mine:
            sys.exit("another controller holds this fleet")
        settings, nodes = make_settings(cell.idle_s, period_s), cell.provisioner(os.environ)
        Controller(settings, nodes, RayMembers(cell.head), book, _tell).run()


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:]))
