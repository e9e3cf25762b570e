"""`arriero logs`: how much the platform logs."""

import argparse
from typing import TYPE_CHECKING, Any

from serve_app.cli_parts import ACCESS, add_action, add_group, print_text

if TYPE_CHECKING:
    from serve_app.admin_client import AdminClient

_EXAMPLES = f"""\
examples:
  arriero logs level                how much is logged now
  arriero logs level DEBUG          by all processes, within a second or two
  arriero logs level default        what the config file says
{ACCESS}"""
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "default")


def add_logs(subcommands: Any) -> None:
    """Adds `arriero logs`."""
    actions = add_group(subcommands, "logs", "how much is logged", _EXAMPLES)
    parser = add_action(actions, "level", "show or change the least severe level written", _level)
    parser.add_argument("level", nargs="?", choices=_LEVELS, help="show it where none is given")


def _level(client: "AdminClient", options: argparse.Namespace) -> int:
    if options.level is None:
        answer = client.call("GET", "/admin/logging")
    else:
        level = None if options.level == "default" else options.level
        answer = client.call("PUT", "/admin/logging", {"level": level})
    return print_text(options, answer, answer["level"])
