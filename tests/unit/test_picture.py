"""Dashboards drawn without Grafana."""

import json
import warnings
from typing import Any

import httpx
import pytest

from cluster.monitoring.grafana import FOLDER
from cluster.monitoring.picture import Source, draw, show


def answer(request: httpx.Request) -> httpx.Response:
    """Two lines, one with a gap, to whatever is asked; none for refusals."""
    query, start = request.url.params["query"], float(request.url.params["start"])
    assert "$" not in query
    values = [[start, "0.5"], [start + 30, "NaN"], [start + 60, "2"]]
    series = [{"metric": {"tenant": name}, "values": values} for name in ("a", "b")]
    result = [] if "refusals" in query else series
    return httpx.Response(200, json={"data": {"result": result}})


@pytest.fixture
def source() -> Source:
    found = Source("http://prometheus", minutes=5.0)
    found._client = httpx.Client(base_url="http://p", transport=httpx.MockTransport(answer))
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: str(file.stem))
def test_every_panel_has_its_place(file: Any, source: Source) -> None:
    board = json.loads(file.read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(board, source)
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    lines = [panel for panel in panels if panel["type"] != "stat"]
    assert len(figure.axes) == len(panels) + len(lines)


def answer_states(request: httpx.Request) -> httpx.Response:
    start = float(request.url.params["start"])
    series = [
        {"metric": {"state": state, "domain": state}, "values": [[start, "1"]]}
        for state in ("draining", "failed", "loading", "ready")
    ]
    return httpx.Response(200, json={"data": {"result": series}})


def test_lines_have_the_colour_of_the_state_that_they_are_named_for() -> None:
    source = Source("http://prometheus", minutes=5.0)
    transport = httpx.MockTransport(answer_states)
    source._client = httpx.Client(base_url="http://p", transport=transport)
    board = json.loads((FOLDER / "arriero-overview.json").read_text())
    states = [panel for panel in board["panels"] if panel["title"] == "Engines by state"]
    others = [panel for panel in board["panels"] if panel["title"] == "Fairness: gap to bound"]
    good, bad = "#73bf69", "#f2495c"
    colours = {}
    for title, panels in (("states", states), ("others", others)):
        figure = draw({"title": "", "panels": panels}, source)
        for line in figure.axes[1].lines:
            colours[title, line.get_label()] = line.get_color()
    assert (colours["states", "ready"], colours["states", "failed"]) == (good, bad)
    assert not {good, bad} & {colours["states", "draining"], colours["states", "loading"]}
    named_alike = [colour for (title, _), colour in colours.items() if title == "others"]
    assert len(named_alike) >= 4
    assert named_alike.count(bad) <= 1  # The limit is red.
    assert good not in named_alike


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (1.5, "s", "1.5 s"),
        (0.256, "percentunit", "25.6 %"),
        (12_345.0, "suffix: tok/s", "12.3 k tok/s"),
        (3.0, "currencyUSD", "$3"),
        (2.0, "reqps", "2 req/s"),
        (7.0, "short", "7"),
    ],
)
def test_values_are_written_with_their_units(value: float, unit: str, text: str) -> None:
    assert show(value, unit) == text
