"""Invariants of `serve_app.policy.adapters`."""

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from serve_app.messages import EngineId
from serve_app.policy.adapters import (
    AdapterEngine,
    Nearness,
    choose_place,
    choose_preparation,
)

_IDS = st.integers(1, 9)
_SETS = st.frozensets(_IDS, max_size=5)
_ENGINES = st.lists(
    st.builds(
        AdapterEngine,
        engine_id=st.text("abcdef", min_size=1, max_size=3).map(EngineId),
        is_ready=st.booleans(),
        in_flight=st.integers(0, 12),
        room=st.integers(1, 10),
        slots=st.integers(0, 4),
        running=_SETS,
        in_memory=_SETS,
        on_disk=_SETS,
    ),
    max_size=6,
    unique_by=lambda engine: engine.engine_id,
)
_ADAPTER = st.none() | _IDS


def _find(engines: list[AdapterEngine], engine_id: EngineId) -> AdapterEngine:
    return next(engine for engine in engines if engine.engine_id == engine_id)


def _is_within(engines: list[AdapterEngine], engine: AdapterEngine) -> bool:
    ready = [e for e in engines if e.is_ready]
    average = (sum(e.in_flight for e in ready) + 1) / sum(e.room for e in ready)
    return engine.in_flight < max(1.0, 1.25 * average * engine.room)


@given(_ENGINES, _ADAPTER)
def test_never_beyond_room(engines: list[AdapterEngine], adapter: int | None) -> None:
    place = choose_place(engines, adapter)
    if place is not None:
        chosen = _find(engines, place.engine_id)
        assert chosen.is_ready
        assert chosen.in_flight < chosen.room


@given(_ENGINES, _IDS)
def test_slots_are_kept(engines: list[AdapterEngine], adapter: int) -> None:
    place = choose_place(engines, adapter)
    if place is not None:
        chosen = _find(engines, place.engine_id)
        assert chosen.slots > 0 or adapter in chosen.running
        assert adapter in chosen.running or len(chosen.running) <= chosen.slots


@given(_ENGINES, _ADAPTER)
def test_work_conserving(engines: list[AdapterEngine], adapter: int | None) -> None:
    can = [
        e
        for e in engines
        if e.is_ready
        and e.in_flight < e.room
        and (adapter is None or adapter in e.running or (e.slots > 0 and len(e.running) <= e.slots))
    ]
    assert (choose_place(engines, adapter) is None) == (not can)


@given(_ENGINES, _ADAPTER)
def test_load_is_bounded(engines: list[AdapterEngine], adapter: int | None) -> None:
    place = choose_place(engines, adapter)
    if place is not None and not _is_within(engines, _find(engines, place.engine_id)):
        able = [e for e in engines if e.may_take(adapter)]
        assert not any(_is_within(engines, e) for e in able)


@given(_ENGINES, _IDS)
def test_nearest_first(engines: list[AdapterEngine], adapter: int) -> None:
    place = choose_place(engines, adapter)
    if place is not None:
        chosen = _find(engines, place.engine_id)
        assert place.nearness == chosen.nearness(adapter)
        if _is_within(engines, chosen):
            within = [e for e in engines if e.may_take(adapter) and _is_within(engines, e)]
            assert all(place.nearness <= e.nearness(adapter) for e in within)


@given(st.sets(st.text("abcdef", min_size=1, max_size=3).map(EngineId), min_size=2), _IDS)
def test_homes_stay(names: set[EngineId], adapter: int) -> None:
    engines = [AdapterEngine(name, True, 0, 8, 4) for name in sorted(names)]
    home = choose_place(engines, adapter)
    assert home is not None
    for gone in engines:
        left = [engine for engine in engines if engine is not gone]
        place = choose_place(left, adapter)
        assert place is not None
        assert place.engine_id == home.engine_id or gone.engine_id == home.engine_id


@given(_ENGINES, _ADAPTER)
def test_ties_do_not_depend_on_the_order(engines: list[AdapterEngine], adapter: int | None) -> None:
    assert choose_place(engines, adapter) == choose_place(engines[::-1], adapter)


@given(_ENGINES, _IDS)
def test_preparation_is_where_the_request_would_go(
    engines: list[AdapterEngine], adapter: int
) -> None:
    idle = [replace(e, in_flight=0, running=frozenset(), slots=max(1, e.slots)) for e in engines]
    prepared, place = choose_preparation(idle, adapter), choose_place(idle, adapter)
    if prepared is not None:
        assert place is not None
        assume(place.nearness is Nearness.AWAY)
        assert prepared == place.engine_id
