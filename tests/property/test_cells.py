"""Invariants of how a front spreads work over cells."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.cells import (
    MOST,
    Cell,
    CellLoad,
    choose_weights,
    distance,
    find_room,
)

ZONES = ("", "x/east/a", "x/east/b", "x/west/a", "y/north/a")
loads = st.builds(
    CellLoad,
    places=st.integers(1, 200),
    busy=st.integers(0, 400),
    ours=st.integers(0, 400),
)
prices = st.none() | st.floats(0.0, 100.0)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Cell], dict[str, CellLoad]]:
    n_cells = draw(st.integers(1, 6))
    cells = [
        Cell(f"c{i}", "http://x", draw(st.sampled_from(ZONES)), draw(prices))
        for i in range(n_cells)
    ]
    return cells, {cell.name: draw(loads) for cell in cells}


fills = st.floats(0.1, 1.0)


@given(worlds(), st.sampled_from(ZONES), fills)
def test_every_cell_gets_something(
    world: tuple[list[Cell], dict[str, CellLoad]], here: str, fill: float
) -> None:
    weights = choose_weights(*world, here, fill, {})
    assert weights.keys() == {cell.name for cell in world[0]}
    assert all(1 <= weight <= MOST for weight in weights.values())
    assert max(weights.values()) == MOST


@given(worlds(), st.sampled_from(ZONES[1:]), fills, loads)
def test_near_and_cheap_first(
    world: tuple[list[Cell], dict[str, CellLoad]], here: str, fill: float, load: CellLoad
) -> None:
    cells, given_loads = world
    near = Cell("near", "http://n", here, 1.0)
    far = Cell("far", "http://f", "z/far/a", 0.5)
    dear = replace(near, name="dear", usd_per_h=3.0)
    all_loads = given_loads | {"near": load, "far": load, "dear": load}
    weights = choose_weights([*cells, near, far, dear], all_loads, here, fill, {})
    assert weights["near"] >= weights["dear"] >= weights["far"]


@given(st.integers(1, 200), st.data())
def test_own_requests_move_nothing(places: int, data: st.DataObject) -> None:
    others = data.draw(st.integers(0, places))
    ours = data.draw(st.integers(0, places - others))
    assert find_room(CellLoad(places, others + ours, ours)) == places - others


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), fills)
def test_all_full_goes_by_room(all_places: list[int], fill: float) -> None:
    cells = [
        Cell(f"c{i}", "http://x", ZONES[i % len(ZONES)], float(i)) for i in range(len(all_places))
    ]
    full = {f"c{i}": CellLoad(n, 2 * n, 2 * n) for i, n in enumerate(all_places)}
    weights = choose_weights(cells, full, "x/east/a", fill, {})
    most = max(all_places)
    for i, places in enumerate(all_places):
        assert abs(weights[f"c{i}"] - MOST * places / most) <= 1


@given(worlds(), st.sampled_from(ZONES), fills)
def test_weights_hold_still(
    world: tuple[list[Cell], dict[str, CellLoad]], here: str, fill: float
) -> None:
    weights = choose_weights(*world, here, fill, {})
    assert choose_weights(*world, here, fill, weights) == weights


def test_equal_cells_get_equal_weights_and_an_idle_dear_one_a_trickle() -> None:
    cells = [Cell("a", "http://a", usd_per_h=1.0), Cell("b", "http://b", usd_per_h=1.1)]
    dear = Cell("c", "http://c", usd_per_h=3.0)
    idle = {name: CellLoad(50) for name in "abc"}
    assert choose_weights([*cells, dear], idle, "", 0.8, {}) == {"a": 200, "b": 200, "c": 133}
    busy = {name: CellLoad(50, 20, 20) for name in "ab"} | {"c": CellLoad(50)}
    assert choose_weights([*cells, dear], busy, "", 0.8, {}) == {"a": 200, "b": 200, "c": 8}


def test_distance_counts_what_zones_share() -> None:
    assert [
        distance("x/east/a", zone) for zone in ("x/east/a", "x/east/b", "x/west/a", "y", "")
    ] == [
        0,
        1,
        2,
        3,
        3,
    ]
    assert distance("", "") == 3
