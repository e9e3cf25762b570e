"""What `arriero fleet plan` and `status` show; they change nothing."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.controller import Controller
    from cluster.fleet_parts import FleetParts
    from cluster.fleet_tables import FleetView

_CLEAR = "\033[H\033[2J"


def show_plan(fleet: "FleetParts", options: argparse.Namespace) -> int:
    """Print what would be launched and ended."""
    say_that_it_takes_time(fleet)
    view = _look(fleet, fleet.controller(lambda line: None))
    if options.json:
        print(json.dumps(view.plan_json(fleet.provisioner), indent=2))
    else:
        print(view.plan_text(fleet.provisioner))
    return 0


def show_status(fleet: "FleetParts", options: argparse.Namespace) -> int:
    """Print the nodes and what they cost, once or again and again."""
    from cluster.provisioner import ProvisionerAwayError

    say_that_it_takes_time(fleet)
    # The same for all looks: prices are asked for once an hour.
    controller = fleet.controller(lambda line: None)
    print(_status(fleet, controller, options))
    while options.every is not None:
        time.sleep(max(options.every, fleet.settings.period_s))
        try:
            shown = _status(fleet, controller, options)
        except ProvisionerAwayError as error:
            shown = str(error)
        print((_CLEAR if sys.stdout.isatty() else "\n") + shown, flush=True)
    return 0


def _status(fleet: "FleetParts", controller: "Controller", options: argparse.Namespace) -> str:
    view = _look(fleet, controller)
    with fleet.book.hold() as is_free:
        holder = None if is_free else fleet.book.holder()
    if options.json:
        return json.dumps({**view.status_json(), "controller": holder}, indent=2)
    who = f"Controller: process {holder}."
    if holder is None:
        who = (
            f"No controller runs: `arriero fleet up {options.file}` keeps the fleet at its target."
        )
    return f"{view.status_text()}\n{who}"


def say_that_it_takes_time(fleet: "FleetParts") -> None:
    """Tell who waits that SkyPilot is asked: its API server may have to be started."""
    if fleet.settings.provisioner.kind == "skypilot":
        print("Asking SkyPilot; its first answer takes a while…", file=sys.stderr, flush=True)


def _look(fleet: "FleetParts", controller: "Controller") -> "FleetView":
    from cluster.fleet_tables import FleetView

    step = controller.preview()
    ended = fleet.book.read_ended()
    return FleetView(fleet.settings, step, controller.offers(), ended, time.time())
