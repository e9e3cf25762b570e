"""`arriero keys`: making, showing and ending API keys."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli_bounds import add_bounds, bounds_of, show_bounds
from serve_app.cli_parts import (
    ACCESS,
    add_action,
    add_group,
    connected,
    print_table,
    print_text,
    quote,
    read_duration,
    show_time,
)
from serve_app.errors import CommandError

if TYPE_CHECKING:
    from serve_app.admin_client import AdminClient

_KEY_EXAMPLES = f"""\
examples:
  arriero keys create --bootstrap config.yaml      the first admin key, straight into the store
  arriero keys create --tenant search --name ci --expires 90d --requests-per-min 60
  arriero keys list --tenant search
  arriero keys rotate key-1f2e3d4c5b6a7988 --grace 1h
  arriero keys revoke key-1f2e3d4c5b6a7988
  arriero keys hash                                a key and its hash, for a tenant in config.yaml

A key is shown once, when it is made, and stored only as a hash.
{ACCESS}"""

_OPERATORS = "operators"


def add_keys(subcommands: Any) -> None:
    """Adds `arriero keys`."""
    from serve_app.config_tenants import Limits

    actions = add_group(subcommands, "keys", "make, list and revoke API keys", _KEY_EXAMPLES)
    parser = add_action(actions, "list", "every key, without its text", _list_keys)
    parser.add_argument("--tenant", help="only this tenant's")
    create = add_action(actions, "create", "make a key and show it, this once", _create_key)
    create.add_argument("--tenant", help="whose it is (with --bootstrap: operators)")
    create.add_argument("--name", help="what it is for")
    create.add_argument(
        "--scope",
        action="append",
        choices=("inference", "admin"),
        help="what it may do; repeat for both (default inference, with --bootstrap admin)",
    )
    create.add_argument("--expires", type=read_duration, metavar="TIME", help="such as 90d, 12h")
    create.add_argument(
        "--bootstrap",
        type=Path,
        metavar="CONFIG",
        help="write to the store of this config file itself; needs no key, but access to the store",
    )
    add_bounds(create, "limits", Limits)
    create.set_defaults(run=_run_create)
    rotate = add_action(actions, "rotate", "replace a key by a new one", _rotate_key)
    rotate.add_argument("key", help="the key's id")
    rotate.add_argument(
        "--grace", type=read_duration, default=0.0, metavar="TIME", help="the old one still works"
    )
    revoke = add_action(actions, "revoke", "end a key for good", _revoke_key)
    revoke.add_argument("key", help="the key's id")
    hash_parser = actions.add_parser("hash", help="make a key and its hash, for config.yaml")
    hash_parser.add_argument("--json", action="store_true", help="for scripts")
    hash_parser.set_defaults(run=_print_hash)


def _list_keys(client: "AdminClient", options: argparse.Namespace) -> int:
    answer = client.call("GET", "/admin/keys", tenant=options.tenant)
    rows = [
        (
            k["id"],
            k["tenant"],
            k["name"] or "",
            f"{k['prefix']}…" if k["prefix"] else "",
            ", ".join(k["scopes"]),
            show_bounds(k["limits"]),
            k["state"],
            show_time(k["expires_s"]) or "never",
            show_time(k["last_used_s"]),
            k["source"],
        )
        for k in answer["data"]
    ]
    header = (
        "KEY",
        "TENANT",
        "NAME",
        "BEGINS",
        "SCOPES",
        "BOUNDS",
        "STATE",
        "EXPIRES",
        "LAST USED",
        "SOURCE",
    )
    return print_table(options, answer, header, rows)


def _run_create(options: argparse.Namespace) -> int:
    if options.bootstrap is not None:
        return _bootstrap(options)
    if not options.tenant:
        raise CommandError("--tenant is missing: whose key will it be?")
    return connected(_create_key)(options)


def _create_key(client: "AdminClient", options: argparse.Namespace) -> int:
    body = {
        "tenant": options.tenant,
        "name": options.name,
        "scopes": options.scope or ["inference"],
        "expires_in_s": options.expires,
        **bounds_of(options),
    }
    return _print_key(options, client.call("POST", "/admin/keys", body))


def _bootstrap(options: argparse.Namespace) -> int:
    from serve_app.config_file import load_config_file
    from serve_app.config_store import describe_database
    from serve_app.first_key import make_first_key

    if bounds_of(options):
        raise CommandError("A key that is made with --bootstrap has no bounds; leave them out.")
    print("Reading the config file; this takes a few seconds…", file=sys.stderr, flush=True)
    settings = load_config_file(options.bootstrap).settings
    expires_s = time.time() + options.expires if options.expires is not None else None
    key = asyncio.run(
        make_first_key(
            settings,
            tenant=options.tenant or _OPERATORS,
            name=options.name or "bootstrap",
            scopes=tuple(options.scope or ("admin",)),
            expires_s=expires_s,
        )
    )
    print(f"It is in {describe_database(settings.store)}.", file=sys.stderr)
    if settings.auth.kind == "off":
        print("Note: keys are off in this file; set auth.kind to keys.", file=sys.stderr)
    return _print_key(options, key)


def _rotate_key(client: "AdminClient", options: argparse.Namespace) -> int:
    path = f"/admin/keys/{quote(options.key)}/rotate"
    return _print_key(options, client.call("POST", path, {"grace_s": options.grace}))


def _revoke_key(client: "AdminClient", options: argparse.Namespace) -> int:
    answer = client.call("POST", f"/admin/keys/{quote(options.key)}/revoke")
    return print_text(options, answer, f"Revoked {options.key}.")


def _print_hash(options: argparse.Namespace) -> int:
    from serve_app.keys import make_key

    key = make_key()
    if options.json:
        print(json.dumps({"key": key.text, "hash": key.hash}))
    else:
        print(f"key (give it to the tenant; it is not stored): {key.text}")
        print(f"hash (for tenants[].keys in config.yaml):      {key.hash}")
    return 0


def _print_key(options: argparse.Namespace, key: Mapping[str, Any]) -> int:
    if options.json:
        print(json.dumps(key, indent=2))
        return 0
    print(f"Key {key['id']} of {key['tenant']} ({', '.join(key['scopes'])}). Shown this once:")
    print()
    print(f"  {key['key']}")
    return 0
