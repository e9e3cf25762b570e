"""What a front knows of cells: their `/ready`, and what a fleet's controller has written down."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.cells import CellWatch, FleetOfCells, Look, list_cells, read_look
from cluster.fleet_cells import KnownCell, read_cells, save_cells
from cluster.fleet_cells import list_cells as list_known
from cluster.policy.cells import Cell
from cluster.policy.fleet import NodeId, ZoneId
from cluster.policy.reconcile import Entry, Machine
from serve_app.config_front import FrontSettings

_EAST = {"name": "east", "url": "http://10.0.0.5:8000/", "zone": "x/east/a", "usd_per_h": 2.0}


def _model(state: str, *engines: tuple[str, int], waiting: int = 0) -> dict[str, Any]:
    shown = [{"state": s, "places": 8, "running": n, "waiting": 1} for s, n in engines]
    return {"state": state, "waiting": waiting, "engines": shown}


def test_look_counts_places_of_ready_engines_and_all_requests() -> None:
    models = {"a": _model("ready", ("ready", 3), ("loading", 0), waiting=5), "b": _model("ready")}
    assert read_look(True, {"models": models}) == Look(True, False, 8, 10)


def test_look_knows_a_cell_of_gateways() -> None:
    assert read_look(True, {"only_gateways": True, "models": {}}).only_gateways
    assert not read_look(True, {"models": {}}).only_gateways


def test_a_model_whose_engines_all_drain_means_that_the_cell_leaves() -> None:
    models = {"a": _model("ready", ("ready", 0)), "b": _model("draining", ("draining", 2))}
    assert read_look(False, {"models": models}).leaves
    assert read_look(False, {}) == Look()


def test_a_cell_that_its_cloud_takes_leaves() -> None:
    models = {"a": _model("ready", ("ready", 3))}
    assert read_look(False, {"leaves_s": 1_030.0, "models": models}).leaves
    assert not read_look(True, {"leaves_s": None, "models": models}).leaves


def _watch(
    answer: httpx.Response | None, *, is_open: bool, asks_for_keys: bool = True
) -> CellWatch:
    def handle(request: httpx.Request) -> httpx.Response:
        if answer is None:
            raise httpx.ConnectError("refused")
        if request.url.path == "/v1/models":
            return httpx.Response(401 if asks_for_keys else 200)
        return answer

    return CellWatch(is_open=is_open, client=httpx.Client(transport=httpx.MockTransport(handle)))


@pytest.mark.parametrize(
    ("answer", "look"),
    [
        (httpx.Response(200, json={"models": {}}), Look(True)),
        (httpx.Response(503, json={"models": {}}), Look()),
        (httpx.Response(502, text="no JSON"), None),
        (httpx.Response(200, json=["another service"]), None),
        (httpx.Response(200, json={"models": ["another service"]}), None),
        (None, None),
    ],
)
def test_a_cell_is_asked_whether_it_is_ready(
    answer: httpx.Response | None, look: Look | None
) -> None:
    watch = _watch(answer, is_open=False)
    assert watch.look([Cell("east", "http://x")]) == {"east": look}
    watch.close()


def test_a_front_that_others_reach_sends_nothing_to_a_cell_without_keys() -> None:
    ready = httpx.Response(200, json={"models": {}})
    for asks, is_ready in ((True, True), (False, False)):
        watch = _watch(ready, is_open=True, asks_for_keys=asks)
        look = watch.look([Cell("east", "http://x")])["east"]
        assert look is not None
        assert look.is_ready == is_ready
        watch.close()


def _machine(name: str, state: Any = "up", address: str = "10.0.0.9") -> Machine:
    return Machine(NodeId(name), ZoneId("x/west/a"), "spot", state, 0.0, address=address)


def _entry(name: str, **changes: Any) -> Entry:
    return Entry(NodeId(name), ZoneId("x/west/a"), "spot", 0.0, 1.5, **changes)


def test_a_fleet_tells_which_of_its_nodes_can_be_reached_and_which_leave() -> None:
    machines = [_machine("b"), _machine("a"), _machine("c", "starting"), _machine("d", address="")]
    entries = [_entry(name) for name in "acd"] + [_entry("b", leaves_s=9.0)]
    assert list_known(entries, machines) == [
        KnownCell("a", "10.0.0.9", "x/west/a", 1.5, False),
        KnownCell("b", "10.0.0.9", "x/west/a", 1.5, True),
    ]


def test_cells_are_those_of_the_settings_and_those_of_the_fleet(tmp_path: Path) -> None:
    front = FrontSettings.model_validate({"cells": [_EAST]})
    fleet = FleetOfCells(tmp_path / "fleet", 8000)
    east = Cell("east", "http://10.0.0.5:8000", "x/east/a", 2.0)
    assert list_cells(front, None) == [east]
    assert list_cells(front, fleet) == [east]
    known = [
        KnownCell("b", "10.0.0.9", "x/west/a", 1.5, True),
        KnownCell("east", "10.0.0.7", "x/west/a", 1.5, False),
    ]
    save_cells(fleet.folder, known)
    save_cells(fleet.folder, known)
    assert read_cells(fleet.folder) == known
    assert list_cells(front, fleet) == [
        east,
        Cell("b", "http://10.0.0.9:8000", "x/west/a", 1.5, True),
    ]
