"""`arriero fleet`: nodes in clouds, or on this machine."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli_fleet_views import say_that_it_takes_time, show_plan, show_status
from serve_app.cli_parts import add_group, read_port, read_seconds
from serve_app.errors import CommandError

if TYPE_CHECKING:
    from cluster.controller import Step
    from cluster.fleet_parts import FleetParts
    from cluster.policy.reconcile import Entry

_EXAMPLES = """\
examples:
  arriero fleet plan configs/spot-fleet.yaml       what would be launched, where, at which price
  arriero fleet up configs/spot-fleet.yaml         keep the fleet at its target, until Ctrl-C
  arriero fleet status configs/spot-fleet.yaml     nodes, zones, prices, reclaims, savings
  arriero fleet drain cells-3 configs/spot-fleet.yaml      let one node finish, and end it
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
    plan = _add(
        actions, "plan", "show what would be launched and ended; changes nothing", show_plan
    )
    plan.add_argument("--json", action="store_true", help="for scripts")
    up = _add(actions, "up", "start the fleet and keep it at its target, until Ctrl-C", _up)
    up.add_argument("--dry-run", action="store_true", help="show what would be done first")
    up.add_argument(
        "--until-ready", action="store_true", help="end once the target serves; nodes stay"
    )
    up.add_argument(
        "--timeout-s",
        type=read_seconds,
        metavar="S",
        help="with --until-ready: give up after so long",
    )
    up.add_argument(
        "--metrics-port",
        type=read_port,
        metavar="PORT",
        help="show metrics at this port (default: any that is free; Prometheus finds it)",
    )
    status = _add(actions, "status", "show nodes, prices, reclaims and savings", show_status)
    status.add_argument("--json", action="store_true", help="for scripts")
    status.add_argument(
        "--every", type=read_seconds, metavar="S", help="again after so long, until Ctrl-C"
    )
    drain = _add(actions, "drain", "let one node finish, and end it", _drain, "node")
    drain.add_argument("--dry-run", action="store_true", help="show what would be done")
    drain.add_argument(
        "--within-s", type=read_seconds, metavar="S", help="end it after so long (default: drain_s)"
    )
    down = _add(actions, "down", "end every node; asks first", _down)
    down.add_argument("--dry-run", action="store_true", help="show what would be ended")
    down.add_argument("--yes", action="store_true", help="do not ask")
    down.add_argument(
        "--within-s",
        type=read_seconds,
        metavar="S",
        help="end them after so long (default: drain_s)",
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
            print(f"\nInterrupted. {_what_stays(fleet, options.file)}", file=sys.stderr)
            return 130
        finally:
            fleet.provisioner.close()

    return run


def _what_stays(fleet: "FleetParts", file: Path) -> str:
    """Return what a command that was broken off leaves behind, and how to go on."""
    orders = sorted(fleet.book.orders())
    with fleet.book.hold() as is_free:
        who = "nobody now" if is_free else f"the controller, process {fleet.book.holder()}"
    if "down" in orders:
        return (
            f"All nodes are to end, and {who} sees to it; `arriero fleet down {file}` goes on, "
            f"`arriero fleet up {file}` takes it back."
        )
    if orders:
        return (
            f"{', '.join(orders)} is to end, and {who} sees to it; `arriero fleet up {file}` goes "
            "on."
        )
    return f"Nodes stay; `arriero fleet up {file}` goes on, `arriero fleet down {file}` ends them."


def _up(fleet: "FleetParts", options: argparse.Namespace) -> int:
    from cluster.fleet_book import DOWN
    from cluster.fleet_tables import count_of
    from cluster.local_watch import Watch
    from serve_app.fleet_watch import watch_fleet

    if options.dry_run:
        return show_plan(fleet, argparse.Namespace(json=False))
    watch, settings = Watch(), fleet.settings
    deadline_s = time.monotonic() + options.timeout_s if options.timeout_s else None

    def is_over(step: "Step") -> bool:
        shown.show(step)
        n_serving = sum(entry.is_ready for entry in step.entries)
        stuck = sum(entry.leaves_s is None for entry in step.entries) < step.target
        hint = f"; nothing can be asked for now, `arriero fleet plan {options.file}` says why"
        hint = hint if stuck and DOWN not in fleet.book.orders() else ""
        watch.say_changes({"fleet": f"{n_serving} of {step.target} serve{hint}"})
        if DOWN in fleet.book.orders() and not step.entries:
            fleet.book.fulfil(DOWN)
            return True
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise CommandError(
                f"{n_serving} of {settings.target} nodes serve after {options.timeout_s:g} s. They "
                f"stay; `arriero fleet up {options.file}` goes on."
            )
        return bool(options.until_ready and n_serving >= settings.target)

    with fleet.book.hold(tries=5) as is_mine:
        if not is_mine:
            raise CommandError(
                f"process {fleet.book.holder()} keeps this fleet already. `arriero fleet status "
                f"{options.file}` shows it."
            )
        fleet.book.fulfil(DOWN)  # an order that was broken off
        nodes = count_of(settings.target)
        watch.say(f"Keeping {nodes}; Ctrl-C ends this and leaves what nodes there are")
        port, folder = options.metrics_port, fleet.book.folder
        with watch_fleet(settings.name, port, folder, fleet.ray_head) as shown:
            fleet.controller(watch.say).run(is_over)
    return 0


def _drain(fleet: "FleetParts", options: argparse.Namespace) -> int:
    entries = _nodes(fleet)
    entry = next((entry for entry in entries if entry.id == options.node), None)
    if entry is None:
        known = ", ".join(entry.id for entry in entries) or "none"
        raise CommandError(f"{options.node!r} is no node of this fleet; it has: {known}.")
    left_s = fleet.settings.drain_s if options.within_s is None else options.within_s
    till = f"gets {left_s:g} s to finish, then ends" if entry.is_ready else "ends at once"
    if entry.leaves_s is not None:
        till = "leaves already"
    print(f"{entry.id}: {entry.market} in {entry.zone}; {till}.")
    if options.dry_run:
        return 0
    fleet.book.order(entry.id, left_s)

    def is_gone() -> bool:
        return all(e.id != entry.id for e in fleet.book.load().entries)

    return _see_to_it(fleet, is_gone, left_s)


def _down(fleet: "FleetParts", options: argparse.Namespace) -> int:
    from cluster.fleet_book import DOWN
    from cluster.fleet_tables import list_ending

    entries = _nodes(fleet)
    if not entries:
        print("No node is there.")
        return 0
    print(list_ending(entries))
    if options.dry_run:
        return 0
    if not options.yes and not _is_sure(f"End {_count(entries)}?"):
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


def _count(entries: "Sequence[Entry]") -> str:
    return "this node" if len(entries) == 1 else f"these {len(entries)} nodes"


def _nodes(fleet: "FleetParts") -> "Sequence[Entry]":
    """Return what nodes there are. Needs no prices, so that nodes can be ended without."""
    say_that_it_takes_time(fleet)
    return fleet.controller(lambda line: None).look().entries
