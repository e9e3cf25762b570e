"""Draws one of Grafana's dashboards without Grafana: same file, same queries, same places.

    python -m cluster.monitoring.picture PROMETHEUS_URL PICTURE [--board UID] [--minutes 10]

For machines and pages that have no Grafana, such as the README's.
"""

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.monitoring.grafana import FOLDER
from cluster.monitoring.panels import fill_in

_COLUMNS = 24
_UNIT_INCHES = 0.3
"""Of one row of Grafana's grid."""
_BACK, _PANEL, _INK, _DIM = "#111217", "#181b1f", "#d8d9da", "#8e9097"
_GOOD, _BAD = "#73bf69", "#f2495c"
_COLOURS = ("#5794f2", "#ff9830", "#b877d9", "#fade2a", "#8ab8ff", "#37bbb2", "#d8d9da", "#ca95e5")
"""Of lines whose names say nothing of good or bad: neither green nor red."""
_NAMED = {"green": _GOOD, "red": _BAD, "orange": "#ff9830", "blue": "#5794f2"}
"""Grafana's names of colours, as it shows them in the dark."""
_RATE = "30s"
_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One series of a panel."""

    name: str
    times_s: list[float]
    values: list[float]


class Source:
    """A Prometheus, asked about the last minutes, inside `with`."""

    def __init__(self, url: str, minutes: float) -> None:
        self._client = httpx.Client(base_url=url, timeout=30.0)
        self.end_s = time.time()
        self.start_s = self.end_s - 60.0 * minutes

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self, panel: dict[str, Any]) -> list[Line]:
        """Returns a panel's lines."""
        return [line for target in panel["targets"] for line in self._ask(target)]

    def _ask(self, target: dict[str, Any]) -> list[Line]:
        step_s = max(1.0, (self.end_s - self.start_s) / _POINTS)
        query = fill_in(target["expr"], _RATE)
        params: dict[str, Any] = {"query": query, "step": step_s}
        params |= {"start": self.start_s, "end": self.end_s}
        answer = self._client.get("/api/v1/query_range", params=params).raise_for_status()
        return [
            Line(
                _name(target["legendFormat"], series["metric"]),
                [at_s for at_s, _ in series["values"]],
                [float(value) for _, value in series["values"]],
            )
            for series in answer.json()["data"]["result"]
        ]


def _name(legend: str, labels: dict[str, str]) -> str:
    for label, value in labels.items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return legend


def draw(board: dict[str, Any], source: Source) -> Figure:
    """Returns a picture of a dashboard."""
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    mpl.rcParams.update({"text.color": _INK, "font.size": 8, "font.family": "DejaVu Sans"})
    inches = (height + 2) * _UNIT_INCHES
    figure = Figure(figsize=(13, inches), facecolor=_BACK)
    figure.text(0.012, 1 - 0.7 * _UNIT_INCHES / inches, board["title"], fontsize=13, va="center")
    for panel in board["panels"]:
        place = panel["gridPos"]
        top = 1 - (place["y"] + 1.5) * _UNIT_INCHES / inches
        tall = place["h"] * _UNIT_INCHES / inches
        box = (place["x"] / _COLUMNS, top - tall, place["w"] / _COLUMNS, tall)
        if panel["type"] == "row":
            figure.text(0.012, top - tall / 2, panel["title"], fontsize=9.5, va="center")
        elif panel["type"] == "stat":
            _draw_number(figure, box, panel, source.read(panel))
        else:
            _draw_lines(figure, box, panel, source)
    return figure


Box = tuple[float, float, float, float]
"""Left, bottom, width, height, as shares of the picture."""


def _panel_axes(figure: Figure, box: Box, title: str) -> Axes:
    left, bottom, width, height = box
    gap = 0.004
    back = figure.add_axes((left + gap, bottom + gap / 2, width - 2 * gap, height - gap))
    back.set_facecolor(_PANEL)
    back.set_xticks([])
    back.set_yticks([])
    for spine in back.spines.values():
        spine.set_color("#2c3235")
    back.text(0.015, 0.965, title, transform=back.transAxes, va="top", fontsize=8.5)
    return back


def _draw_number(figure: Figure, box: Box, panel: dict[str, Any], lines: list[Line]) -> None:
    back = _panel_axes(figure, box, panel["title"])
    known = [v for line in lines for v in line.values if math.isfinite(v)]
    text = show(known[-1], panel["fieldConfig"]["defaults"]["unit"]) if known else "no data"
    limit = _limit(panel)
    is_bad = bool(known) and limit is not None and known[-1] >= limit
    back.text(
        0.5, 0.42, text, transform=back.transAxes, ha="center", va="center", fontsize=19,
        color=_BAD if is_bad else _GOOD,
    )  # fmt: skip


def _limit(panel: dict[str, Any]) -> float | None:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    found: list[float] = [step["value"] for step in steps if step["value"] is not None]
    return found[0] if found else None


def _draw_lines(figure: Figure, box: Box, panel: dict[str, Any], source: Source) -> None:
    _panel_axes(figure, box, panel["title"])
    left, bottom, width, height = box
    inner = (left + 0.05, bottom + 0.28 * height, width - 0.064, 0.54 * height)
    axes = figure.add_axes(inner, facecolor=_PANEL)
    unit = panel["fieldConfig"]["defaults"]["unit"]
    lines = source.read(panel)
    for index, line in enumerate(lines):
        colour = _colour_of(line.name, panel) or _COLOURS[index % len(_COLOURS)]
        ages_min = [(at_s - source.end_s) / 60 for at_s in line.times_s]
        axes.plot(ages_min, line.values, color=colour, linewidth=1.1, label=line.name)
        axes.fill_between(ages_min, line.values, color=colour, alpha=0.08, linewidth=0)
    limit, (_, most) = _limit(panel), axes.get_ylim()
    if limit is not None and limit < 3 * most:
        axes.axhline(limit, color=_BAD, linewidth=0.8, linestyle="--")
    axes.set_xlim((source.start_s - source.end_s) / 60, 0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: show(value, unit))
    axes.xaxis.set_major_formatter(lambda value, _: _age(value))
    axes.tick_params(colors=_DIM, labelsize=7, length=0)
    axes.grid(color="#2c3235", linewidth=0.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if not lines:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=_BAD)
    elif any(line.name for line in lines):
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=min(len(lines), 5),
            frameon=False, labelcolor=_DIM, fontsize=7, handlelength=1.0,
        )  # fmt: skip


def _age(minutes: float) -> str:
    """How long ago that was, as an axis says it; `minutes` are negative."""
    if not minutes:
        return "now"
    return f"{minutes:g} min" if minutes == int(minutes) else f"{minutes * 60:g} s"


def _colour_of(name: str, panel: dict[str, Any]) -> str | None:
    """The colour that the dashboard gives to lines of this name, if it gives any."""
    for override in panel["fieldConfig"].get("overrides", ()):
        if re.search(override["matcher"]["options"], name):
            colours = [p["value"] for p in override["properties"] if p["id"] == "color"]
            return next((_NAMED[colour["fixedColor"]] for colour in colours), None)
    return None


def show(value: float, unit: str) -> str:
    """Returns a value as Grafana would write it."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{value * 1000:.3g} ms"
    number = f"{value / 1000:.3g} k" if abs(value) >= 10_000 else f"{value:.3g}"
    if unit == "currencyUSD":
        return f"${number}"
    suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") else ""
    return number + suffix + {"reqps": " req/s", "ops": " /s"}.get(unit, "")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("prometheus", help="address of a Prometheus that scrapes the platform")
    parser.add_argument("picture", type=Path, help="file to write")
    parser.add_argument("--board", default="arriero-overview", help="which dashboard")
    parser.add_argument("--minutes", type=float, default=10.0, help="how far back")
    options = parser.parse_args(argv)
    board = json.loads((FOLDER / f"{options.board}.json").read_text("utf-8"))
    with Source(options.prometheus, options.minutes) as source:
        figure = draw(board, source)
    figure.savefig(options.picture, dpi=80)
    return 0


if __name__ == "__main__":
    sys.exit(main())
