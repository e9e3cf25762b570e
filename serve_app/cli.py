"""The `arriero` command.

Each subcommand is a function that takes its parsed arguments and returns an exit status. To add
one, write `_add_NAME` and name it in `_SUBCOMMANDS`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serve_app.cli_adapters import add_adapters
from serve_app.cli_fairness import add_fairness
from serve_app.cli_fleet import add_fleet
from serve_app.cli_front import add_front
from serve_app.cli_keys import add_keys
from serve_app.cli_logs import add_logs
from serve_app.cli_requests import add_requests
from serve_app.cli_tenants import add_tenants
from serve_app.cli_top import add_top
from serve_app.cli_usage import add_usage
from serve_app.errors import ArrieroError, ConfigError

_EXAMPLES = """\
examples:
  arriero check config.yaml                 is this file valid, and what does it ask for?
  arriero up                                start Ray here and serve config.yaml
  arriero up configs/one-h100-llama-3.1-8b.yaml
  arriero status                            what runs, and is it ready?
  arriero down                              stop what `up` started
  arriero keys create --bootstrap config.yaml        the first admin key
  arriero tenants list                      who may send requests, and how much
  arriero adapters add sql --base llama --source s3://models/adapters/sql
  arriero usage                             what they used
  arriero top                               what goes on, live
  arriero requests list --since 1h --slower-than 5   why were they slow?
  arriero replay ID                         send a kept request again
  arriero fairness replay FILE              did the router keep to the rules?
  arriero fleet plan FILE                   which nodes would be launched, where, at what price?
  arriero front configs/front.yaml          one address over several cells

exit status: 0 done, 1 failed, 2 wrong usage or an invalid file
"""

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    parser = _build_parser()
    options, rest = parser.parse_known_args(argv)
    run: Run = options.run
    if rest and run is not _run_local:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        return run(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except ArrieroError as error:
        print(error, file=sys.stderr)
        return 1


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arriero",
        description="Serve language models fairly to many tenants, on Ray Serve and vLLM.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _SUBCOMMANDS:
        add(subcommands)
    return parser


def _add_check(subcommands: Any) -> None:
    parser = subcommands.add_parser(
        "check", help="check a config file and show what it asks for; starts nothing"
    )
    parser.add_argument("file", type=Path, help="a Ray Serve config file, such as config.yaml")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    from serve_app.config_file import load_config_file
    from serve_app.config_summary import summarize

    print("Checking; loading vLLM takes a few seconds…", file=sys.stderr, flush=True)
    print(summarize(load_config_file(options.file)))
    return 0


def _add_local(subcommands: Any) -> None:
    """Add the subcommands that `cluster.local` runs; it parses what follows them itself."""
    for name, words in (
        ("up", "start Ray on this machine, serve a config file, and wait until it answers"),
        ("down", "stop what `up` started, and nothing else"),
        ("status", "show what runs on this machine and whether it is ready"),
    ):
        parser = subcommands.add_parser(name, help=words, add_help=False)
        parser.set_defaults(run=_run_local, command=name)


def _run_local(options: argparse.Namespace) -> int:
    from cluster import local

    status: int = local.main([options.command, *options.rest])
    return status


_SUBCOMMANDS: tuple[Callable[[Any], None], ...] = (
    _add_check,
    _add_local,
    add_tenants,
    add_keys,
    add_adapters,
    add_usage,
    add_requests,
    add_top,
    add_logs,
    add_fairness,
    add_fleet,
    add_front,
)

if __name__ == "__main__":
    sys.exit(main())
