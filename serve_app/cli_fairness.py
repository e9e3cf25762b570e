"""`arriero fairness`: checks what a router wrote down of its decisions."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from serve_app.cli_parts import add_group
from serve_app.errors import ConfigError
from serve_app.policy.fairness_audit import Record, replay

_EXAMPLES = """\
examples:
  arriero fairness replay ~/.local/state/arriero/audit/my-model/*.jsonl
  arriero fairness replay --json 1764000000000000000.jsonl

Routers write these files where fairness.audit is set. Each is checked by itself.
exit status: 0 every decision follows the rules, 1 some do not, 2 a file cannot be read
"""
_SHOWN = 20


def add_fairness(subcommands: Any) -> None:
    """Adds `arriero fairness`."""
    actions = add_group(subcommands, "fairness", "check a router's decisions offline", _EXAMPLES)
    words = "check that logged decisions follow the rules of fair turns"
    parser = actions.add_parser(
        "replay",
        help=words,
        description=f"{words[0].upper()}{words[1:]}; needs no running platform.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a log of decisions")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=_replay)


def _replay(options: argparse.Namespace) -> int:
    results = [_check(path) for path in options.files]
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            _print(result)
    return 1 if any(result["violations"] for result in results) else 0


def _check(path: Path) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    tenants: set[str] = set()

    def observed() -> Iterator[Record]:
        for record in _read(path):
            counts[type(record).__name__.lower()] += 1
            tenants.add(getattr(record, "tenant", ""))
            yield record

    violations = replay(observed())
    return {
        "file": str(path),
        "records": counts.total(),
        "arrived": counts["arrived"],
        "admitted": counts["admitted"],
        "tenants": len(tenants - {""}),
        "violations": violations,
    }


def _read(path: Path) -> Iterator[Record]:
    """Yields a file's records.

    Raises:
        ConfigError: It cannot be read, or a line is not a record. A router that was killed may have
            left half a line at the end, which is passed over.
    """
    decoder = msgspec.json.Decoder(Record)
    try:
        with path.open("rb") as file:
            for n, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    print(f"{path}: line {n} was cut off; it is left out.", file=sys.stderr)
                    return
                yield decoder.decode(line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{path}, line {n}, is not a record of fair decisions: {error}. Give a file that a "
            "router of this version has written."
        ) from error


def _print(result: dict[str, Any]) -> None:
    violations = result["violations"]
    verdict = f"{len(violations)} violations" if violations else "every decision follows the rules"
    print(
        f"{result['file']}: {result['records']:,} records, {result['admitted']:,} turns, "
        f"{result['tenants']} tenants: {verdict}"
    )
    for violation in violations[:_SHOWN]:
        print(f"  {violation}")
    if len(violations) > _SHOWN:
        print(f"  and {len(violations) - _SHOWN} more; --json lists all")
