"""What the commands that use the admin API have in common."""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as quote_url

if TYPE_CHECKING:
    from serve_app.admin_client import AdminClient

ACCESS = """
environment:
  ARRIERO_ADMIN_KEY   a key with the scope admin; never an argument, which others could see
  ARRIERO_URL         the platform's address (default http://127.0.0.1:8000)
"""

_MOST_S = 1_000_000
_LAST_PORT = 65_535
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

Act = Callable[["AdminClient", argparse.Namespace], int]


def add_group(subcommands: Any, name: str, words: str, examples: str) -> Any:
    """Add a command with actions; return where those are added."""
    parser = subcommands.add_parser(
        name,
        help=words,
        description=f"{words[0].upper()}{words[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(metavar="ACTION", required=True)


def add_action(actions: Any, name: str, words: str, act: Act) -> argparse.ArgumentParser:
    """Add an action that asks the platform."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=words, description=words)
    add_common(parser, act)
    return parser


def add_common(parser: argparse.ArgumentParser, act: Act, *, needs_key: bool = True) -> None:
    """Add what every command that asks the platform takes.

    Args:
        parser: The command's.
        act: What it does.
        needs_key: Whether it is of no use without a key, even where keys are off.
    """
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--url", help="the platform's address (default: ARRIERO_URL)")
    parser.set_defaults(run=connected(act, needs_key=needs_key))


def connected(act: Act, *, needs_key: bool = True) -> Callable[[argparse.Namespace], int]:
    """Return what runs an action with a connection, as the environment and --url say."""

    def run(options: argparse.Namespace) -> int:
        from serve_app.admin_client import AdminClient

        return act(AdminClient(options.url, needs_key=needs_key), options)

    return run


def quote(text: str) -> str:
    """Return a name as it stands in a path."""
    return quote_url(text, safe="")


def show_time(time_s: float | None) -> str:
    """Return a time for people, in UTC; nothing for None."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M") if time_s else ""


def print_table(
    options: argparse.Namespace, answer: Any, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> int:
    """Print a table, or the answer as JSON where that was asked for; return the exit status."""
    from serve_app.config_summary import format_table

    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(format_table([header, *rows])))
    return 0


def print_text(options: argparse.Namespace, answer: Any, text: str) -> int:
    """Print a text, or the answer as JSON where that was asked for; return the exit status."""
    print(json.dumps(answer, indent=2) if options.json else text)
    return 0


def read_duration(text: str) -> float:
    """Read a length of time, such as 90d, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 30m, 12h, 90d or 4w")
    return float(match[1]) * _UNIT_S[match[2]]


def read_seconds(text: str) -> float:
    """Read a number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0 to {_MOST_S}")
    return seconds


def read_port(text: str) -> int:
    """Read a port to listen on."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; ports are 1 to {_LAST_PORT}")
    return int(text)
