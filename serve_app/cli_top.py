"""`arriero top`: what goes on, refreshed in the terminal."""

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from serve_app.cli_parts import ACCESS, add_common
from serve_app.errors import CommandError

if TYPE_CHECKING:
    from serve_app.admin_client import AdminClient

_EXAMPLES = f"""\
examples:
  arriero top                       until ctrl-c
  arriero top --once                what goes on now
  arriero top --once --json         the same for scripts
{ACCESS}"""
_LEAST_EVERY_S = 0.2


def add_top(subcommands: Any) -> None:
    """Adds `arriero top`."""
    parser = subcommands.add_parser(
        "top",
        help="models, engines, tenants, queues, fairness and spend, live",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="print it once and end")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="default 1 s")
    add_common(parser, _show, needs_key=False)


def _show(client: "AdminClient", options: argparse.Namespace) -> int:
    status = client.call("GET", "/admin/status")
    if options.json:
        print(json.dumps(status, indent=2))
    elif options.once:
        _print_once(status)
    else:
        _show_live(client, status, max(options.every, _LEAST_EVERY_S))
    return 0


def _print_once(status: dict[str, Any]) -> None:
    from rich.console import Console

    from serve_app.top_view import TopView

    Console().print(TopView(status))


def _show_live(client: "AdminClient", status: dict[str, Any], every_s: float) -> None:
    """A platform that is away for a while shows what was last known, and since when."""
    from rich.live import Live

    from serve_app.top_view import TopView

    try:
        with Live(TopView(status, fits_screen=True), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every_s)
                problem = ""
                try:
                    status = client.call("GET", "/admin/status")
                except CommandError as error:
                    problem = str(error)
                live.update(TopView(status, problem, fits_screen=True), refresh=True)
    except KeyboardInterrupt:
        return
