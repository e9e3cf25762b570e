"""What the dashboards show: boards of panels, panels of queries. Data only.

`grafana` makes Grafana's files of it, `picture` draws it, and a test asks a real Prometheus every
query. Queries may use Grafana's `$__rate_interval` and the board's variable `$model`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Unit = Literal[
    "short", "reqps", "s", "percentunit", "currencyUSD", "tokens/s", "tokens", "bytes", "ops"
]
"""Grafana's names of units."""


TONES = {
    r"ready|finished|[123]..": "green",
    r"loading|refused|cancelled|4..": "orange",
    r"draining": "blue",
    r"failed|5..": "red",
}
"""Colours of lines that are named for how something is, by patterns of the whole name."""


@dataclass(frozen=True)
class Query:
    """One line of a panel, or several: one a set of labels.

    Attributes:
        expr: In PromQL.
        legend: Names a line; `{{label}}` stands for a label's value.
    """

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: Above it.
        words: What it shows, and what to look for.
        queries: Its lines.
        unit: Of all of them.
        kind: A line over time, or one number.
        width: Of 24.
        limit: Where it turns red; None never.
        has_tones: Whether its lines are named for states, and have those states' colours.
    """

    title: str
    words: str
    queries: tuple[Query, ...]
    unit: Unit = "short"
    kind: Literal["lines", "number"] = "lines"
    width: int = 12
    limit: float | None = None
    has_tones: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard.

    Attributes:
        uid: By which Grafana knows it, and its file's name.
        title: Above it.
        words: What it answers.
        rows: From top to bottom.
        has_models: Whether queries use `$model`.
    """

    uid: str
    title: str
    words: str
    rows: tuple[Row, ...]
    has_models: bool = True

    def panels(self) -> Iterator[Panel]:
        """Yields all panels, from top to bottom."""
        for row in self.rows:
            yield from row.panels


def fill_in(expr: str, interval: str, model: str = ".+") -> str:
    """Returns a query as Prometheus takes it, with what Grafana would put in."""
    return expr.replace("$__rate_interval", interval).replace("$model", model)


def number(title: str, words: str, expr: str, unit: Unit, limit: float | None = None) -> Panel:
    """Returns a panel of one number."""
    return Panel(title, words, (Query(expr),), unit, "number", 4, limit)


def quantiles(metric: str, selector: str, by: str = "") -> tuple[Query, ...]:
    """Returns the median, the 90th and the 99th percentile of a histogram; the last only, by label.

    Args:
        metric: Its name.
        selector: Which of its series, as between braces.
        by: The label whose values are told apart; empty is none.
    """
    if by:
        return (Query(quantile(0.99, metric, selector, by), f"{{{{{by}}}}}"),)
    return tuple(Query(quantile(q, metric, selector), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99))


def quantile(q: float, metric: str, selector: str, by: str = "") -> str:
    """Returns one percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    rate = f"rate({metric}_bucket{{{selector}}}[$__rate_interval])"
    return f"histogram_quantile({q:g}, sum by ({labels}) ({rate}))"


def rate(metric: str, selector: str = "", by: str = "") -> str:
    """Returns how much a counter grows a second, over all processes."""
    inner = f"rate({metric}{{{selector}}}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"
