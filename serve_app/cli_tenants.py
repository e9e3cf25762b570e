"""`arriero tenants`: who may send requests, and how much."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli_bounds import add_bounds, bounds_of, show_bounds
from serve_app.cli_parts import (
    ACCESS,
    add_action,
    add_group,
    print_table,
    print_text,
    quote,
    show_time,
)
from serve_app.errors import CommandError

if TYPE_CHECKING:
    from serve_app.admin_client import AdminClient

_TENANT_EXAMPLES = f"""\
examples:
  arriero tenants list
  arriero tenants create search --weight 2 --total-tokens-per-min 100000
  arriero tenants update search --usd-per-month 500 --requests-per-min none
  arriero tenants update search --allow-model llama --allow-model 'llama:*'
  arriero tenants delete search

Tenants that the config file declares are shown here and changed there.
{ACCESS}"""


def add_tenants(subcommands: Any) -> None:
    """Adds `arriero tenants`."""
    actions = add_group(subcommands, "tenants", "list and change tenants", _TENANT_EXAMPLES)
    add_action(actions, "list", "every tenant", _list_tenants)
    for name, words, act in (
        ("show", "one tenant, with all its bounds", _show_tenant),
        ("create", "make a tenant", _create_tenant),
        ("update", "change what is given; the rest stays", _update_tenant),
        ("delete", "delete a tenant and revoke its keys; its usage stays", _delete_tenant),
    ):
        parser = add_action(actions, name, words, act)
        parser.add_argument("tenant", help="the tenant's id")
        if name in ("create", "update"):
            _add_terms(parser)


def _add_terms(parser: argparse.ArgumentParser) -> None:
    from serve_app.config_tenants import Budgets, Limits

    parser.add_argument("--weight", type=float, help="part of the engines beside others")
    parser.add_argument("--tier", type=int, help="0 to 9; a higher tier goes first")
    parser.add_argument(
        "--allow-model",
        action="append",
        metavar="MODEL",
        help="may use this model; repeat for more; '*' at the end matches any rest",
    )
    parser.add_argument(
        "--own-prefix-cache",
        action=argparse.BooleanOptionalAction,
        help="whether its cached prefixes are kept apart from other tenants'",
    )
    parser.add_argument(
        "--keep-texts",
        action=argparse.BooleanOptionalAction,
        help="whether its prompts and answers are kept for a while, to be read and replayed",
    )
    parser.add_argument(
        "--terms",
        metavar="FILE",
        help="more terms as JSON, such as bounds on a model; - reads stdin",
    )
    add_bounds(parser, "limits", Limits)
    add_bounds(parser, "budgets", Budgets)


def _terms_of(options: argparse.Namespace) -> dict[str, Any]:
    terms: dict[str, Any] = _read_json(options.terms) if options.terms else {}
    given = {
        "weight": options.weight,
        "tier": options.tier,
        "allowed_models": options.allow_model,
        "has_own_prefix_cache": options.own_prefix_cache,
        "keeps_texts": options.keep_texts,
    }
    terms |= {name: value for name, value in given.items() if value is not None}
    for section, bounds in bounds_of(options).items():
        terms[section] = terms.get(section, {}) | bounds
    return terms


def _list_tenants(client: "AdminClient", options: argparse.Namespace) -> int:
    answer = client.call("GET", "/admin/tenants")
    rows = [
        (
            t["id"],
            f"{t['weight']:g}",
            str(t["tier"]),
            _show_models(t["allowed_models"]),
            show_bounds(t["limits"] | t["budgets"]),
            t["source"],
        )
        for t in answer["data"]
    ]
    header = ("TENANT", "WEIGHT", "TIER", "MODELS", "BOUNDS", "SOURCE")
    return print_table(options, answer, header, rows)


def _show_tenant(client: "AdminClient", options: argparse.Namespace) -> int:
    return _print_fields(options, client.call("GET", f"/admin/tenants/{quote(options.tenant)}"))


def _create_tenant(client: "AdminClient", options: argparse.Namespace) -> int:
    body = {"id": options.tenant, **_terms_of(options)}
    return _print_fields(options, client.call("POST", "/admin/tenants", body))


def _update_tenant(client: "AdminClient", options: argparse.Namespace) -> int:
    path = f"/admin/tenants/{quote(options.tenant)}"
    return _print_fields(options, client.call("PATCH", path, _terms_of(options)))


def _delete_tenant(client: "AdminClient", options: argparse.Namespace) -> int:
    answer = client.call("DELETE", f"/admin/tenants/{quote(options.tenant)}")
    return print_text(options, answer, f"Deleted {options.tenant}; its keys work no more.")


def _print_fields(options: argparse.Namespace, answer: Mapping[str, Any]) -> int:
    if options.json:
        print(json.dumps(answer, indent=2))
        return 0
    limits, budgets = dict(answer["limits"]), answer["budgets"]
    by_model = limits.pop("models")
    shown = {
        "tenant": answer["id"],
        "source": answer["source"],
        "weight": f"{answer['weight']:g}",
        "tier": str(answer["tier"]),
        "models": "all"
        if answer["allowed_models"] is None
        else ", ".join(answer["allowed_models"]),
        "own prefix cache": "yes" if answer["has_own_prefix_cache"] else "no",
        "texts kept": "yes" if answer["keeps_texts"] else "no",
        "limits": show_bounds(limits),
        **{f"limits on {model}": show_bounds(bounds) for model, bounds in by_model.items()},
        "budgets": show_bounds(budgets),
        "created": show_time(answer["created_s"]),
        "updated": show_time(answer["updated_s"]),
    }
    for name, value in shown.items():
        print(f"{name:<18} {value}".rstrip())
    return 0


def _show_models(allowed: list[str] | None) -> str:
    return "all" if allowed is None else ", ".join(allowed) or "none"


def _read_json(place: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if place == "-" else Path(place).read_text("utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise CommandError(f"{place}: cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CommandError(f"{place}: must hold a JSON object.")
    return content
