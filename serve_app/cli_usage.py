"""`arriero usage`: tokens and cost."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serve_app.cli_parts import ACCESS, add_common, print_table

if TYPE_CHECKING:
    from serve_app.admin_client import AdminClient

_TENANTS = 5
"""Of those that bear a fleet's cost, so many are named in a line."""
_USAGE_EXAMPLES = f"""\
examples:
  arriero usage                                    the last 30 days, by tenant and model
  arriero usage --from 2026-01-01 --to 2026-01-31 --by day,tenant
  arriero usage --tenant search --csv > usage.csv
{ACCESS}"""


def add_usage(subcommands: Any) -> None:
    """Adds `arriero usage`."""
    parser = subcommands.add_parser(
        "usage",
        help="tokens and cost, by tenant, model, adapter and day",
        epilog=_USAGE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="first", metavar="DAY", help="first day (UTC)")
    parser.add_argument("--to", dest="last", metavar="DAY", help="last day, included")
    parser.add_argument("--by", default="tenant,model", help="what to keep apart")
    for name in ("tenant", "model", "adapter"):
        parser.add_argument(f"--{name}", help=f"only this {name}'s")
    parser.add_argument("--csv", action="store_true", help="for spreadsheets")
    add_common(parser, _show_usage)


def _show_usage(client: "AdminClient", options: argparse.Namespace) -> int:
    query = {
        "from": options.first,
        "to": options.last,
        "by": options.by,
        "tenant": options.tenant,
        "model": options.model,
        "adapter": options.adapter,
        "format": "csv" if options.csv else "json",
    }
    answer = client.call("GET", "/admin/usage", **query)
    if options.csv:
        print(answer, end="")
        return 0
    amounts = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")
    rows = [
        (
            *(row[d] for d in answer["by"]),
            *(f"{row[a]:,}" for a in amounts),
            f"{row['cost_usd']:.4f}",
        )
        for row in answer["data"]
    ]
    header = tuple(name.upper() for name in (*answer["by"], *amounts, "usd"))
    status = print_table(options, answer, header, rows)
    if "fleet" in answer and not options.json:
        print(describe_fleet(answer["fleet"]))
    return status


def describe_fleet(fleet: Mapping[str, Any]) -> str:
    """Return what nodes cost, for people; which node cost what is in the JSON."""
    shares = sorted(fleet["by_tenant"].items(), key=lambda share: (-share[1], share[0]))
    borne = ", ".join(f"{tenant} ${usd:.2f}" for tenant, usd in shares[:_TENANTS])
    if len(shares) > _TENANTS:
        borne += f", {len(shares) - _TENANTS} more ${sum(usd for _, usd in shares[_TENANTS:]):.2f}"
    return (
        f"\nThe fleet's nodes cost ${fleet['usd']:.2f}: ${fleet['spot_usd']:.2f} on spot, "
        f"${fleet['on_demand_usd']:.2f} on demand; on demand all of it would be "
        f"${fleet['all_on_demand_usd']:.2f}.\n"
        f"${fleet['wasted_usd']:.2f} before nodes served or after, ${fleet['idle_usd']:.2f} idle, "
        f"the rest for tenants: {borne or 'none'}."
    )
