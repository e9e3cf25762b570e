"""Draws what goes on as tables for a terminal, however small it is.

Numbers are never cut. Where there is no room, names are, and lists end with how many are left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]

_COLOURS = {
    **dict.fromkeys(("ready", "ok", "asleep"), "green"),
    **dict.fromkeys(("loading", "waking", "draining"), "yellow"),
}
_TENANTS_SHOWN = 20
_LEAST_NAME = 8
_LEAST_TEXT = 20
_GAP = 2
_HEADING_LINES = 2
"""A table's title and the names of its columns."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Above it.
        read: Returns what a row has in it.
        kind: A `name` loses its end where there is no room, an `id` its beginning; a `text` wraps,
            a `number` and a `word` stay.
    """

    name: str
    read: Callable[[Row], str | Text]
    kind: str = "number"


class TopView:
    """What `/admin/status` said, as one picture.

    Args:
        status: What it said last.
        problem: Why it has said nothing since; empty when it has.
        fits_screen: Whether it may be no higher than the terminal.
    """

    def __init__(self, status: Row, problem: str = "", *, fits_screen: bool = False) -> None:
        self._status = status
        self._problem = problem
        self._fits_screen = fits_screen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields it as wide as the terminal."""
        status, width = self._status, options.max_width
        models = _draw_table("models", _MODEL_COLUMNS, status["models"], width)
        domains = _draw_table("fairness", _DOMAIN_COLUMNS, status["domains"], width)
        engines = [engine for model in status["models"] for engine in model["engines"]]
        engines.sort(key=lambda engine: bool(engine["state"] == "ready"))  # Troubles first.
        n_engines, n_tenants = len(engines), min(len(status["tenants"]), _TENANTS_SHOWN)
        if self._fits_screen:
            parts = [*self._draw_head(), models, domains]
            taken = sum(len(console.render_lines(part, options)) for part in parts)
            free = console.size.height - taken - 2 * _HEADING_LINES
            n_engines, n_tenants = _share_lines(free, n_engines, n_tenants)
        yield from self._draw_head()
        yield models
        yield _draw_table("engines", _ENGINE_COLUMNS, engines, width, n_engines)
        yield domains
        yield _draw_table("tenants", _TENANT_COLUMNS, status["tenants"], width, n_tenants)

    def _draw_head(self) -> Iterator[Text]:
        yield _draw_totals(self._status)
        if self._problem:
            yield Text(self._problem, style="bold red")
        if self._status["store_problem"]:
            yield Text(f"store: {self._status['store_problem']}", style="red")


def _share_lines(free: int, n_engines: int, n_tenants: int) -> tuple[int, int]:
    """Returns how many engines and tenants are shown: half each, and what the other leaves."""
    engines = max(1, min(n_engines, free - min(n_tenants, free // 2)))
    return engines, max(1, min(n_tenants, free - engines))


def _draw_totals(status: Row) -> Text:
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
    title: str, columns: Sequence[Column], rows: Sequence[Row], width: int, most: int | None = None
) -> RenderableType:
    """Returns a table of the first rows; None shows all."""
    if not rows:
        return Text(f"{title}: none", style="dim")
    shown = rows[:most]
    left_out = f", {len(rows) - len(shown)} more" if len(shown) < len(rows) else ""
    columns = [c for c in columns if c.kind != "text" or any(str(c.read(row)) for row in shown)]
    cells = [[column.read(row) for column in columns] for row in shown]
    table = Table(
        title=f"{title}{left_out}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, _GAP, 0, 0),
    )
    room = _room_for_names(columns, cells, width)
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.kind == "number" else "left",
            no_wrap=column.kind != "text",
            max_width=room if column.kind in ("name", "id") else None,
            overflow="ellipsis" if column.kind == "name" else "fold",
        )
    for line in cells:
        pairs = zip(columns, line, strict=True)
        table.add_row(*(_cut(cell, room) if c.kind == "id" else cell for c, cell in pairs))
    return table


def _cut(cell: str | Text, room: int) -> Text:
    """Returns the end of an engine's id, which tells it from its model's others."""
    name = str(cell)
    return Text(name if len(name) <= room else f"…{name[1 - room :]}")


def _room_for_names(
    columns: Sequence[Column], cells: Sequence[Sequence[str | Text]], width: int
) -> int:
    """Returns how wide names may be, so that nothing else has to be cut."""
    taken = 0
    for i, column in enumerate(columns):
        if column.kind == "text":
            taken += _LEAST_TEXT
        elif column.kind not in ("name", "id"):
            taken += max(len(column.name), *(len(line[i]) for line in cells))
    return max(_LEAST_NAME, width - taken - _GAP * len(columns))


def _state(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, "bold red"))


def _plain(name: str) -> Callable[[Row], Text]:
    # Not markup: a name may hold brackets.
    return lambda row: Text(str(row[name]))


def _number(name: str) -> Callable[[Row], str]:
    return lambda row: _short(row[name])


def _short(value: float) -> str:
    """Returns a number in at most six characters: 99,999, then 123k, 4.6M."""
    if value < 99_999.5:
        return f"{value:,.0f}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            digits = 1 if value < 100 * size and letter != "k" else 0
            return f"{value / size:,.{digits}f}{letter}"
    raise AssertionError(value)


def _tokens(row: Row) -> str:
    return _short(row["prompt_tokens"] + row["completion_tokens"])


def _spend(row: Row) -> str:
    usd = row["cost_usd"]
    return f"{usd:,.4f}" if usd < 100 else f"{usd:,.2f}"


_MODEL_COLUMNS = (
    Column("model", _plain("name"), "name"),
    Column("state", lambda row: _state(row["state"]), "word"),
    Column("wait", _number("waiting")),
    Column("run", _number("running")),
    Column("tokens/s", _number("tokens_per_s")),
    Column("engines", lambda row: str(len(row["engines"]))),
    Column("detail", _plain("detail"), "text"),
)
_ENGINE_COLUMNS = (
    Column("engine", _plain("id"), "id"),
    Column("state", lambda row: _state(row["state"]), "word"),
    Column("wait", _number("waiting")),
    Column("run", _number("running")),
    Column("KV used", lambda row: f"{row['kv_usage']:.0%}"),
    Column("tokens/s", _number("tokens_per_s")),
)
_DOMAIN_COLUMNS = (
    Column("domain", _plain("name"), "name"),
    Column("tenants waiting", _number("tenants_waiting")),
    Column("gap", _number("gap")),
    Column("bound", _number("bound")),
)
_TENANT_COLUMNS = (
    Column("tenant", _plain("tenant"), "name"),
    Column("weight", lambda row: f"{row['weight']:g}"),
    Column("wait", _number("waiting")),
    Column("run", _number("running")),
    Column("behind", _number("lag")),
    Column("today", _number("requests")),
    Column("failed", _number("failed")),
    Column("tokens", _tokens),
    Column("spend $", _spend),
)
