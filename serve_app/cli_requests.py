"""`arriero requests` and `arriero replay`: what became of single requests."""

import argparse
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.cli_parts import (
    ACCESS,
    add_action,
    add_common,
    add_group,
    print_table,
    print_text,
    quote,
    read_duration,
    show_time,
)
from serve_app.errors import CommandError

if TYPE_CHECKING:
    from serve_app.admin_client import AdminClient

API_KEY_VARIABLE = "ARRIERO_API_KEY"
_EXAMPLES = f"""\
examples:
  arriero requests list --since 1h --slower-than 5      where did the time go?
  arriero requests list --tenant search --outcome failed
  arriero requests show chatcmpl-1234                   by the answer's x-request-id
  arriero requests export november.parquet --since 30d
  arriero requests delete --tenant search               its prompts and answers
  arriero replay chatcmpl-1234                          ask again, compare
{ACCESS}  {API_KEY_VARIABLE}     for replay: a key that may send requests (default: the admin key)
"""
_PAGE_ROWS = 1000
_TIMES = (
    "ttft_ms",
    "gateway_ms",
    "queue_ms",
    "router_ms",
    "adapter_load_ms",
    "engine_ttft_ms",
    "total_ms",
)
_RECORDED_WITHIN_S = 10.0


def add_requests(subcommands: Any) -> None:
    """Adds `arriero requests` and `arriero replay`."""
    actions = add_group(subcommands, "requests", "records of single requests", _EXAMPLES)
    listing = add_action(actions, "list", "the latest, with where their time went", _list)
    _add_filters(listing)
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="default 20")
    shown = add_action(actions, "show", "one, with its texts where they are kept", _show)
    shown.add_argument("id", help="the record's id, or the answer's x-request-id")
    export = add_action(actions, "export", "write records to a Parquet file", _export)
    export.add_argument("file", type=Path, help="is replaced")
    _add_filters(export)
    delete = add_action(actions, "delete", "delete prompts and answers", _delete)
    delete.add_argument("--tenant", help="only this tenant's")
    delete.add_argument("--older-than", type=read_duration, metavar="TIME", help="such as 30d")
    delete.add_argument("--records", action="store_true", help="the records, too")
    replay = subcommands.add_parser(
        "replay",
        help="send a kept request again; show both answers and where the time went",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("id", help="the record's id, or the answer's x-request-id")
    add_common(replay, _replay)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    for name in ("tenant", "model", "adapter", "outcome", "id"):
        parser.add_argument(f"--{name}", help=f"only of this {name}")
    for name, words in (("since", "ended within this time"), ("until", "ended before then")):
        parser.add_argument(f"--{name}", type=read_duration, metavar="TIME", help=f"{words}: 1h")
    parser.add_argument("--slower-than", type=float, metavar="S", help="took longer, in all")
    parser.add_argument("--ttft-over", type=float, metavar="S", help="took longer to begin")


def _query_of(options: argparse.Namespace) -> dict[str, str | None]:
    now_s = time.time()
    ago = {"since": options.since, "until": options.until}
    least = {"slower_than_s": options.slower_than, "ttft_over_s": options.ttft_over}
    return {
        **{name: getattr(options, name) for name in ("tenant", "model", "adapter", "outcome")},
        "id": options.id,
        **{name: None if s is None else f"{now_s - s:.3f}" for name, s in ago.items()},
        **{name: None if s is None else f"{s:g}" for name, s in least.items()},
    }


def _list(client: "AdminClient", options: argparse.Namespace) -> int:
    answer = client.call("GET", "/admin/requests", **_query_of(options), limit=str(options.limit))
    header = ("ENDED", "REQUEST", "TENANT", "MODEL", "OUTCOME", "TOKENS", "MOVES", *_HEADS)
    return print_table(options, answer, header, [_row(each) for each in answer["data"]])


_HEADS = tuple(name.upper().replace("_", " ") for name in _TIMES)


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        show_time(record["ended_s"]),
        record["request_id"] or record["id"],
        record["tenant"],
        record["adapter"] or record["model"],
        record["outcome"],
        f"{record['prompt_tokens']}+{record['completion_tokens']}",
        str(record["migrations"] or 0),
        *(_ms(record[name]) for name in _TIMES),
    )


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _show(client: "AdminClient", options: argparse.Namespace) -> int:
    from serve_app.answer_text import read_answer

    record = client.call("GET", f"/admin/requests/{quote(options.id)}")
    fields = {name: value for name, value in record.items() if name not in ("request", "answer")}
    text = "\n".join(f"{name:<18} {_plain(name, value)}".rstrip() for name, value in fields.items())
    if record["request"] is not None:
        text += f"\n\nrequest:\n{record['request']}\n\nanswer:\n{read_answer(record['answer'])}"
    return print_text(options, record, text)


def _plain(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return show_time(value) if name in ("started_s", "ended_s") else str(value)


def _export(client: "AdminClient", options: argparse.Namespace) -> int:
    from serve_app.request_export import write_parquet

    n_rows = write_parquet(options.file, _read_pages(client, _query_of(options)))
    answer = {"file": str(options.file), "rows": n_rows}
    return print_text(options, answer, f"Wrote {n_rows:,} requests to {options.file}.")


def _read_pages(
    client: "AdminClient", query: dict[str, str | None]
) -> Iterator[list[dict[str, Any]]]:
    before: str | None = None
    while True:
        page = client.call("GET", "/admin/requests", **query, before=before, limit=str(_PAGE_ROWS))
        yield page["data"]
        before = page["next"]
        if before is None:
            return


def _delete(client: "AdminClient", options: argparse.Namespace) -> int:
    days = None if options.older_than is None else f"{options.older_than / 86_400:g}"
    answer = client.call(
        "DELETE",
        "/admin/requests",
        what="requests" if options.records else "texts",
        tenant=options.tenant,
        older_than_days=days,
    )
    words = f"Deleted the texts of {answer['texts']:,} requests and {answer['requests']:,} records."
    return print_text(options, answer, words)


def _replay(client: "AdminClient", options: argparse.Namespace) -> int:
    from serve_app.answer_text import read_answer

    before = client.call("GET", f"/admin/requests/{quote(options.id)}")
    if before["request"] is None:
        raise CommandError(
            f"No texts are kept of {options.id}. They are of tenants with keeps_texts, for "
            "records.keep_texts_days."
        )
    if not before["is_whole"]:
        raise CommandError(f"The texts of {options.id} were cut off at records.max_text_bytes.")
    request_id = f"replay-{uuid.uuid4().hex}"
    key = os.environ.get(API_KEY_VARIABLE, "").strip() or None
    body = client.send(before["path"], before["request"].encode(), request_id, key)
    after = _wait_for_record(client, request_id)
    both = {"before": before, "after": {**after, "answer": body}}
    if options.json:
        return print_text(options, both, "")
    for title, record in both.items():
        print(f"--- {title}: {record['outcome']}, engine {record['engine'] or 'none'}")
        print(read_answer(record["answer"]) + "\n")
    rows = [(n, _ms(before[n]), _ms(after[n])) for n in _TIMES]
    rows += [(n, str(before[n]), str(after[n])) for n in ("prompt_tokens", "completion_tokens")]
    return print_table(options, both, ("", "BEFORE", "AFTER"), rows)


def _wait_for_record(client: "AdminClient", request_id: str) -> dict[str, Any]:
    """Records come into the store some time after the answer."""
    until_s = time.monotonic() + _RECORDED_WITHIN_S
    while True:
        found = client.call("GET", "/admin/requests", id=request_id)["data"]
        if found:
            record: dict[str, Any] = found[0]
            return record
        if time.monotonic() > until_s:
            raise CommandError(
                f"The request was answered, and no record of {request_id} came within "
                f"{_RECORDED_WITHIN_S:g} s. Is the store well? /ready says."
            )
        time.sleep(0.2)
