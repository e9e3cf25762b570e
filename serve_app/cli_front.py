"""`arriero front`: one address over several cells."""

import argparse
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from serve_app.errors import CommandError

if TYPE_CHECKING:
    from cluster.front_parts import FrontParts

_EXAMPLES = """\
examples:
  arriero front configs/front.yaml                 run it, until Ctrl-C
  arriero front configs/front.yaml --dry-run       which cells it would have, and how they stand

Cells are those that `front.cells` of the file names, and those that `arriero fleet up` keeps on the
same machine. HAProxy does the work; this command tells it which cells there are and how much each
gets. Killed, it leaves HAProxy as it is, and started again takes it over. Ctrl-C has HAProxy take
nothing new and end with its last answer; a second one does not wait for that.

  curl http://127.0.0.1:8080/healthz               200 while any cell serves
exit status: 0 done, 1 failed, 2 wrong usage or an invalid file
"""


def add_front(subcommands: Any) -> None:
    """Adds `arriero front`."""
    parser = subcommands.add_parser(
        "front",
        help="one address over several cells",
        description="One address over several cells: spreads requests, and leaves out what leaves.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", type=Path, nargs="?", default=Path("config.yaml"), help="config file with a front"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show the cells and how they stand; starts nothing"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from cluster.front_parts import build_front
    from serve_app.config_file import load_front_file

    parts = build_front(load_front_file(options.file))
    try:
        return _show(parts) if options.dry_run else _serve(parts)
    finally:
        parts.watch.close()


def _show(parts: "FrontParts") -> int:
    from serve_app.config_summary import format_table

    rows = [("cell", "at", "zone", "$/h", "places", "busy", "state")]
    cells = parts.list_cells()
    looks = parts.watch.look(cells)
    for cell in cells:
        look = looks[cell.name]
        price = "" if cell.usd_per_h is None else f"{cell.usd_per_h:.2f}"
        numbers = ("", "") if look is None else (str(look.places), str(look.busy))
        state = "does not answer" if look is None else "ready" if look.is_ready else "not ready"
        state = "leaves" if cell.leaves or (look is not None and look.leaves) else state
        rows.append((cell.name, cell.url, cell.zone, price, *numbers, state))
    print("\n".join(format_table(rows)))
    return 0


def _serve(parts: "FrontParts") -> int:
    from cluster.fleet_book import hold_folder
    from cluster.local_watch import Watch

    watch = Watch()
    with hold_folder(parts.folder) as is_mine:
        if not is_mine:
            raise CommandError(
                f"another `arriero front` keeps this front; {parts.folder / 'lock'} has its "
                "process id."
            )
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            if parts.bank is not None:
                parts.bank.start()
            parts.front(watch.say).run()
        except KeyboardInterrupt:
            parts.haproxy.stop()
            watch.say("HAProxy takes nothing new and ends with its last answer")
            parts.haproxy.wait()
        finally:
            if parts.bank is not None:
                parts.bank.stop()
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
