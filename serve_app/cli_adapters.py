"""`arriero adapters`: LoRA adapters that were registered, declared or found."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

_EXAMPLES = f"""\
examples:
  arriero adapters add sql --base llama --source s3://models/adapters/sql
  arriero adapters add sql --base llama --source /adapters/sql --tenant search --alias search-sql
  arriero adapters add llama:chat --source team/llama-chat-lora@v2      from the hub
  arriero adapters list --base llama
  arriero adapters show llama:sql
  arriero adapters refresh llama:sql         take what is at its source now
  arriero adapters refresh llama:team-blue   check one of a family before anybody uses it,
                                             or end it when its folder is gone
  arriero adapters remove llama:sql

`add` fetches the adapter and checks it: format, base model's shapes, rank, size, finite numbers.
What cannot be served is refused with the reason. Clients then name it `llama:sql`.
{ACCESS}"""

_PAGE = 1000


def add_adapters(subcommands: Any) -> None:
    """Adds `arriero adapters`."""
    words = "register, list and remove LoRA adapters"
    actions = add_group(subcommands, "adapters", words, _EXAMPLES)
    add = add_action(actions, "add", "fetch, check and register an adapter", _add)
    add.add_argument("name", help="its name, alone or as base-model:name")
    add.add_argument("--base", metavar="MODEL", help="base model that it was trained for")
    add.add_argument(
        "--source",
        required=True,
        help="a folder every node can read, file://, s3:// or gs://, or a hub's id owner/name",
    )
    add.add_argument("--tenant", help="the one tenant that may use it (default: all)")
    add.add_argument(
        "--alias", action="append", default=[], help="another name for clients; repeat for more"
    )
    listing = add_action(actions, "list", "every adapter; of families those in use", _list)
    listing.add_argument("--base", metavar="MODEL", help="only of this base model")
    listing.add_argument("--tenant", help="only those private to this tenant")
    for name, words, act in (
        ("show", "one adapter, with what was found in it", _show),
        ("refresh", "fetch it again; new requests get what is there now", _refresh),
        ("remove", "end an adapter; requests that run finish", _remove),
    ):
        parser = add_action(actions, name, words, act)
        parser.add_argument("name", help="base-model:name, or an alias")


def _add(client: "AdminClient", options: argparse.Namespace) -> int:
    base, _, name = options.name.rpartition(":")
    if base and options.base not in (None, base):
        raise CommandError(f"{options.name!r} names another base model than --base {options.base}.")
    if not (base or options.base):
        raise CommandError("Say which base model it is for: --base MODEL.")
    _check_source(options.source)
    body = {
        "name": name,
        "base": base or options.base,
        "source": options.source,
        "tenant": options.tenant,
        "aliases": options.alias,
    }
    return _print(options, client.call("POST", "/admin/adapters", body))


def _check_source(source: str) -> None:
    """A path that is not absolute reads like a hub's id, and would be looked up there."""
    if not source.startswith("/") and "://" not in source and Path(source).is_dir():
        raise CommandError(
            f"--source {source} is a folder here, but paths must be absolute, and the same on "
            f"every machine of the platform: {Path(source).resolve()}. For the hub's repository of "
            f"that name write hf://{source}."
        )


def _list(client: "AdminClient", options: argparse.Namespace) -> int:
    adapters: list[Mapping[str, Any]] = []
    after = ""
    while True:
        page = client.call(
            *("GET", "/admin/adapters"),
            base=options.base,
            tenant=options.tenant,
            after=after,
            limit=str(_PAGE),
        )
        adapters += page["data"]
        if not page["has_more"]:
            break
        after = page["data"][-1]["id"]
    rows = [
        (
            adapter["id"],
            adapter["tenant"] or "all",
            str(adapter["version"]["rank"]) if adapter["version"] else "",
            _show_size(adapter["version"]),
            adapter["origin"],
            adapter["source"],
        )
        for adapter in adapters
    ]
    header = ("ADAPTER", "TENANT", "RANK", "SIZE", "ORIGIN", "SOURCE")
    return print_table(options, {"object": "list", "data": adapters}, header, rows)


def _show(client: "AdminClient", options: argparse.Namespace) -> int:
    return _print(options, client.call("GET", f"/admin/adapters/{quote(options.name)}"))


def _refresh(client: "AdminClient", options: argparse.Namespace) -> int:
    return _print(options, client.call("POST", f"/admin/adapters/{quote(options.name)}/refresh"))


def _remove(client: "AdminClient", options: argparse.Namespace) -> int:
    answer = client.call("DELETE", f"/admin/adapters/{quote(options.name)}")
    return print_text(options, answer, f"Removed {answer['id']}; requests that run finish.")


def _print(options: argparse.Namespace, adapter: Mapping[str, Any]) -> int:
    if options.json:
        print(json.dumps(adapter, indent=2))
        return 0
    version = adapter["version"]
    shown = {
        "adapter": adapter["id"],
        "aliases": ", ".join(adapter["aliases"]),
        "base model": adapter["base"],
        "tenant": adapter["tenant"] or "all",
        "source": adapter["source"],
        "origin": adapter["origin"],
        "created": show_time(adapter["created_s"]),
    }
    if version is None:
        shown["found"] = "not used yet"
    else:
        shown |= {
            "rank": str(version["rank"]),
            "target modules": ", ".join(version["target_modules"]),
            "size": _show_size(version),
            "sha256": version["sha256"],
            "version": f"{version['id']}, found {show_time(version['found_s'])}",
        }
    for name, value in shown.items():
        print(f"{name:<16} {value}".rstrip())
    return 0


def _show_size(version: Mapping[str, Any] | None) -> str:
    return f"{version['bytes'] / 1e6:.1f} MB" if version else ""
