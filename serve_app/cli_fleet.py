"""`arriero fleet`: nodes in clouds, or on this machine."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli_parts import add_group
from serve_app.errors import CommandError

if TYPE_CHECKING:
    from cluster.controller import Step
    from cluster.fleet_parts import FleetParts
    from cluster.fleet_tables import FleetView

_EXAMPLES = """\
examples:
  arriero fleet plan configs/spot-fleet.yaml       what would be launched, where, at which price
  arriero fleet up configs/spot-fleet.yaml         keep the fleet at its target, until Ctrl-C
  arriero fleet status configs/spot-fleet.yaml     nodes, zones, prices, reclaims, savings
  arriero fleet drain arriero-3 configs/spot-fleet.yaml
  arriero fleet down configs/spot-fleet.yaml       end every node; asks first

  on this machine, for nothing:
  arriero up configs/local-fleet.yaml && arriero fleet up configs/local-fleet.yaml

Nodes stay when `up` is stopped or killed: `up` again goes on, `down` ends them. `up` may be started
anywhere, but only once at a time. Clouds need SkyPilot: `make sky`, then `.venv-sky/bin/sky check`.
exit status: 0 done, 1 failed, 2 wrong usage or an invalid file
"""


def add_fleet(subcommands: Any) -> None:
    """Adds `arriero fleet`."""
    actions = add_group(
        subcommands, "fleet", "nodes on spot, with on-demand as fallback", _EXAMPLES
    )
    plan = _add(actions, "plan", "show what would be launched and ended; changes nothing", _plan)
    plan.add_argument("--json", action="store_true", help="for scripts")
    up = _add(actions, "up", "start the fleet and keep it at its target, until Ctrl-C", _up)
    up.add_argument("--dry-run", action="store_true", help="show what would be done first")
    up.add_argument(
        "--until-ready", action="store_true", help="end once the target serves; nodes stay"
    )
    up.add_argument(
        "--timeout-s", type=float, metavar="S", help="with --until-ready: give up after so long"
    )
    up.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="show metrics at this port (default: any that is free, where nodes join one platform; "
        "its gateways list it)",
    )
    status = _add(actions, "status", "show nodes, prices, reclaims and savings", _status)
    status.add_argument("--json", action="store_true", help="for scripts")
    drain = _add(actions, "drain", "let one node finish, and end it", _drain, "node")
    drain.add_argument("--dry-run", action="store_true", help="show what would be done")
    drain.add_argument(
        "--within-s", type=float, metavar="S", help="end it after so long (default: drain_s)"
    )
    down = _add(actions, "down", "end every node; asks first", _down)
    down.add_argument("--dry-run", action="store_true", help="show what would be ended")
    down.add_argument("--yes", action="store_true", help="do not ask")
    down.add_argument(
        "--within-s", type=float, metavar="S", help="end them after so long (default: drain_s)"
    )


def _add(
    actions: Any, name: str, words: str, act: Callable[..., int], first: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=words,
        description=f"{words[0].upper()}{words[1:]}.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if first:
        parser.add_argument(
            first, metavar=first.upper(), type=_node_name, help="its name, as `status` shows it"
        )
    parser.add_argument(
        "file", type=Path, nargs="?", default=Path("config.yaml"), help="config file with a fleet"
    )
    parser.set_defaults(run=_with_fleet(act))
    return parser


def _node_name(text: str) -> str:
    """Refuse a file where a node is asked for."""
    if text.endswith((".yaml", ".yml")):
        raise argparse.ArgumentTypeError(
            f"{text} is a file; say which node, then the file: drain NODE {text}"
        )
    return text


def _with_fleet(act: Callable[..., int]) -> Callable[[argparse.Namespace], int]:
    """Return what runs an action with the file's fleet."""

    def run(options: argparse.Namespace) -> int:
        from cluster.fleet_parts import build_fleet
        from serve_app.config_file import load_fleet_file

        fleet = build_fleet(load_fleet_file(options.file))
        try:
            return act(fleet, options)
        except KeyboardInterrupt:
            print(
                f"\nInterrupted. Nodes stay; `arriero fleet up {options.file}` goes on, "
                f"`arriero fleet down {options.file}` ends them.",
                file=sys.stderr,
            )
            return 130
        finally:
            fleet.provisioner.close()

    return run


def _plan(fleet: "FleetParts", options: argparse.Namespace) -> int:
    view, _ = _look(fleet)
    if options.json:
        print(json.dumps(view.plan_json(fleet.provisioner), indent=2))
    else:
        print(view.plan_text(fleet.provisioner))
    return 0


def _status(fleet: "FleetParts", options: argparse.Namespace) -> int:
    view, _ = _look(fleet)
    with fleet.book.hold() as is_free:
        holder = None if is_free else fleet.book.holder()
    if options.json:
        print(json.dumps({**view.status_json(), "controller": holder}, indent=2))
        return 0
    print(view.status_text())
    if holder is None:
        print(
            f"No controller runs: `arriero fleet up {options.file}` keeps the fleet at its target."
        )
    else:
        print(f"Controller: process {holder}.")
    return 0


def _up(fleet: "FleetParts", options: argparse.Namespace) -> int:
    from cluster.fleet_book import DOWN
    from cluster.local_watch import Watch
    from serve_app.fleet_watch import watch_fleet

    if options.dry_run:
        return _plan(fleet, argparse.Namespace(json=False))
    watch, settings = Watch(), fleet.settings
    deadline_s = time.monotonic() + options.timeout_s if options.timeout_s else None

    def is_over(step: "Step") -> bool:
        shown.show(step)
        n_serving = sum(entry.is_ready for entry in step.entries)
        watch.say_changes({"fleet": f"{n_serving} of {step.target} serve"})
        if DOWN in fleet.book.orders() and not step.entries:
            fleet.book.fulfil(DOWN)
            return True
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise CommandError(
                f"{n_serving} of {settings.target} nodes serve after {options.timeout_s:g} s. They "
                f"stay; `arriero fleet up {options.file}` goes on."
            )
        return bool(options.until_ready and n_serving >= settings.target)

    with fleet.book.hold() as is_mine:
        if not is_mine:
            raise CommandError(
                f"process {fleet.book.holder()} keeps this fleet already. `arriero fleet status "
                f"{options.file}` shows it."
            )
        fleet.book.fulfil(DOWN)  # an order that was broken off
        watch.say(f"Keeping {settings.target} nodes; Ctrl-C ends this and leaves the nodes")
        with watch_fleet(settings.name, options.metrics_port, fleet.ray_head) as shown:
            fleet.controller(watch.say).run(is_over)
    return 0


def _drain(fleet: "FleetParts", options: argparse.Namespace) -> int:
    _, step = _look(fleet)
    entry = next((entry for entry in step.entries if entry.id == options.node), None)
    if entry is None:
        known = ", ".join(entry.id for entry in step.entries) or "none"
        raise CommandError(f"{options.node!r} is no node of this fleet; it has: {known}.")
    left_s = fleet.settings.drain_s if options.within_s is None else options.within_s
    print(f"{entry.id}: {entry.market} in {entry.zone}; gets {left_s:g} s to finish, then ends.")
    if options.dry_run:
        return 0
    fleet.book.order(entry.id, left_s)

    def is_gone() -> bool:
        return all(e.id != entry.id for e in fleet.book.load().entries)

    return _see_to_it(fleet, is_gone, left_s)


def _down(fleet: "FleetParts", options: argparse.Namespace) -> int:
    from cluster.fleet_book import DOWN
    from cluster.fleet_tables import list_ending

    _, step = _look(fleet)
    if not step.entries:
        print("No node is there.")
        return 0
    print(list_ending(step.entries))
    if options.dry_run:
        return 0
    if not options.yes and not _is_sure(f"End these {len(step.entries)} nodes?"):
        print("Nothing was ended.")
        return 1
    left_s = fleet.settings.drain_s if options.within_s is None else options.within_s
    fleet.book.order(DOWN, left_s)
    status = _see_to_it(fleet, lambda: not fleet.book.load().entries, left_s)
    _take_back(fleet, DOWN)
    print("All nodes are gone.")
    return status


def _take_back(fleet: "FleetParts", order: str) -> None:
    """Forget an order once no controller runs: one that does would start nodes again."""
    for _ in range(120):
        with fleet.book.hold() as is_mine:
            if is_mine:
                fleet.book.fulfil(order)
                return
        time.sleep(0.5)
    raise CommandError(
        f"all nodes are gone, but the controller, process {fleet.book.holder()}, does not end; "
        "end it with Ctrl-C."
    )


def _see_to_it(fleet: "FleetParts", is_done: Callable[[], bool], left_s: float) -> int:
    """Have an order followed: by the controller that runs, or here."""
    from cluster.local_watch import Watch

    watch, give_up_s = Watch(), time.monotonic() + left_s + 600.0
    while not is_done() and time.monotonic() < give_up_s:
        with fleet.book.hold() as is_mine:
            if is_mine:
                fleet.controller(watch.say).run(lambda step: is_done())
                return 0
        watch.say_changes({"order": f"left to the controller, process {fleet.book.holder()}"})
        time.sleep(0.5)
    if not is_done():
        raise CommandError("the controller does not follow; is it stopped? `arriero fleet status`")
    return 0


def _is_sure(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError("down asks first, and nobody is there to answer: add --yes.")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _look(fleet: "FleetParts") -> "tuple[FleetView, Step]":
    """Look at the fleet; change nothing."""
    from cluster.fleet_tables import FleetView

    controller = fleet.controller(lambda line: None)
    step = controller.preview()
    ended = fleet.book.read_ended()
    return FleetView(fleet.settings, step, controller.offers(), ended, time.time()), step
