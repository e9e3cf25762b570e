"""Draws what goes on as tables for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_COLOURS = {"ready": "green", "ok": "green", "loading": "yellow", "draining": "yellow"}
_TENANTS_SHOWN = 20

Column = tuple[str, Callable[[Mapping[str, Any]], str | Text]]


def draw(status: Mapping[str, Any], problem: str = "") -> RenderableType:
    """Returns what `/admin/status` said as one picture.

    Args:
        status: What it said last.
        problem: Why it has said nothing since; empty when it has.
    """
    parts: list[RenderableType] = [_draw_totals(status)]
    if problem:
        parts.append(Text(problem, style="bold red"))
    if status["store_problem"]:
        parts.append(Text(f"store: {status['store_problem']}", style="red"))
    parts.append(_draw_table("models", _MODEL_COLUMNS, status["models"]))
    engines = [{**e, "model": m["name"]} for m in status["models"] for e in m["engines"]]
    parts.append(_draw_table("engines", _ENGINE_COLUMNS, engines))
    parts.append(_draw_table("fairness", _DOMAIN_COLUMNS, status["domains"]))
    tenants = status["tenants"][:_TENANTS_SHOWN]
    parts.append(_draw_table("tenants", _TENANT_COLUMNS, tenants))
    return Group(*parts)


def _draw_totals(status: Mapping[str, Any]) -> Text:
    totals = status["totals"]
    at = datetime.fromtimestamp(status["time_s"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    text = Text.assemble((f"Arriero {status['version']}", "bold"), f"  {at} UTC  ")
    text.append_text(_state("ready" if status["ready"] else "not ready"))
    text.append(
        f"  waiting {totals['waiting']:,}  running {totals['running']:,}"
        f"  {totals['tokens_per_s']:,.0f} tokens/s"
        f"  today: {totals['requests']:,} requests, {totals['tokens']:,} tokens,"
        f" ${totals['cost_usd']:,.4f}  store "
    )
    text.append_text(_state(status["store"]))
    return text


def _draw_table(
    title: str, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]
) -> RenderableType:
    if not rows:
        return Text(f"{title}: none", style="dim")
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, (name, _) in enumerate(columns):
        is_text = i == 0 or name in ("state", "model", "detail")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name != "detail")
    for row in rows:
        table.add_row(*(read(row) for _, read in columns))
    return table


def _state(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, "bold red"))


def _plain(name: str) -> Callable[[Mapping[str, Any]], str]:
    # Not markup: a name may hold brackets.
    return lambda row: str(row[name]).replace("[", "\\[")


def _number(name: str, digits: int = 0) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: f"{row[name]:,.{digits}f}"


def _tokens(row: Mapping[str, Any]) -> str:
    return f"{row['prompt_tokens'] + row['completion_tokens']:,}"


_MODEL_COLUMNS: Sequence[Column] = (
    ("model", _plain("name")),
    ("state", lambda row: _state(row["state"])),
    ("waiting", _number("waiting")),
    ("running", _number("running")),
    ("tokens/s", _number("tokens_per_s")),
    ("engines", lambda row: str(len(row["engines"]))),
    ("detail", _plain("detail")),
)
_ENGINE_COLUMNS: Sequence[Column] = (
    ("engine", _plain("id")),
    ("model", _plain("model")),
    ("state", lambda row: _state(row["state"])),
    ("waiting", _number("waiting")),
    ("running", _number("running")),
    ("KV used", lambda row: f"{row['kv_usage']:.0%}"),
    ("tokens/s", _number("tokens_per_s")),
)
_DOMAIN_COLUMNS: Sequence[Column] = (
    ("domain", _plain("name")),
    ("tenants waiting", _number("tenants_waiting")),
    ("gap", _number("gap")),
    ("bound", _number("bound")),
)
_TENANT_COLUMNS: Sequence[Column] = (
    ("tenant", _plain("tenant")),
    ("weight", lambda row: f"{row['weight']:g}"),
    ("waiting", _number("waiting")),
    ("running", _number("running")),
    ("behind", _number("lag")),
    ("requests today", _number("requests")),
    ("failed", _number("failed")),
    ("tokens", _tokens),
    ("spend $", _number("cost_usd", 4)),
)
