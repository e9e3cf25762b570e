"""Invariants of `serve_app.policy.adapters`."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from serve_app.messages import EngineId
from serve_app.policy.adapters import (
    AdapterEngine,
    Nearness,
    choose_place,
    choose_preparation,
    may_load_ahead,
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
        coming=_SETS,
        on_disk=_SETS,
        may_load=st.booleans(),
        closed=_SETS,
    ),
    max_size=6,
    unique_by=lambda engine: engine.engine_id,
)
_ADAPTER = st.none() | _IDS


def _find(engines: list[AdapterEngine], engine_id: EngineId) -> AdapterEngine:
    return next(engine for engine in engines if engine.engine_id == engine_id)


def _is_within(engines: list[AdapterEngine], engine: AdapterEngine, slack: float = 1.25) -> bool:
    ready = [e for e in engines if e.is_ready]
    average = (sum(e.in_flight for e in ready) + 1) / sum(e.room for e in ready)
    return engine.in_flight < max(1.0, slack * average * engine.room)


def _can_run(engines: list[AdapterEngine], adapter: int | None) -> list[AdapterEngine]:
    return [e for e in engines if e.may_take(adapter) and (adapter is None or e.has(adapter))]


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
        assert adapter not in chosen.closed & chosen.running


@given(_ENGINES, _ADAPTER)
def test_work_conserving(engines: list[AdapterEngine], adapter: int | None) -> None:
    assert (choose_place(engines, adapter) is None) == (not _can_run(engines, adapter))
    able = [e for e in engines if e.is_ready and e.slots > 0]
    if adapter is not None and not any(e.has(adapter) or adapter in e.coming for e in able):
        is_loaded = choose_preparation(engines, adapter) is not None
        assert is_loaded == any(e.may_load for e in able)


@given(_ENGINES, _ADAPTER)
def test_load_is_bounded(engines: list[AdapterEngine], adapter: int | None) -> None:
    place = choose_place(engines, adapter)
    if place is not None and not _is_within(engines, _find(engines, place.engine_id)):
        assert not any(_is_within(engines, e) for e in _can_run(engines, adapter))


@given(_ENGINES, _IDS)
def test_nearest_first(engines: list[AdapterEngine], adapter: int) -> None:
    place = choose_place(engines, adapter)
    if place is not None:
        chosen = _find(engines, place.engine_id)
        assert place.nearness == chosen.nearness(adapter) <= Nearness.IN_MEMORY
        if _is_within(engines, chosen):
            within = [e for e in _can_run(engines, adapter) if _is_within(engines, e)]
            assert all(place.nearness <= e.nearness(adapter) for e in within)


@given(_ENGINES, _IDS)
def test_copies_are_for_the_hot(engines: list[AdapterEngine], adapter: int) -> None:
    chosen_id = choose_preparation(engines, adapter)
    if chosen_id is None:
        return
    able = [e for e in engines if e.is_ready and e.slots > 0]
    chosen = _find(engines, chosen_id)
    assert chosen in able
    assert chosen.may_load
    assert not chosen.has(adapter)
    assert not any(adapter in e.coming for e in able)
    have = [e for e in able if e.has(adapter)]
    assert not any(_is_within(engines, e, 1.5) for e in have)
    if have:
        assert _is_within(engines, chosen)
        assert not chosen.coming


_COUNTS = st.integers(0, 12)


@given(_COUNTS, _COUNTS, _COUNTS, st.integers(1, 6), _COUNTS)
def test_ahead_is_bounded(n_own: int, n_others: int, n_used: int, slots: int, room: int) -> None:
    n_ahead, capacity = n_own + n_others, slots + room
    may = may_load_ahead(n_ahead, n_own, n_used, slots, capacity)
    has_room = n_ahead + n_used < capacity
    assert has_room or not may
    assert may or not has_room or (n_own > 0 and n_ahead >= slots)
    assert not (may and n_own > 0) or n_ahead < slots


@given(st.sets(st.text("abcdef", min_size=1, max_size=3).map(EngineId), min_size=2), _IDS)
def test_homes_stay(names: set[EngineId], adapter: int) -> None:
    engines = [AdapterEngine(name, True, 0, 8, 4) for name in sorted(names)]
    home = choose_preparation(engines, adapter)
    for gone in engines:
        left = [engine for engine in engines if engine is not gone]
        assert choose_preparation(left, adapter) == home or gone.engine_id == home


@given(_ENGINES, _ADAPTER)
def test_ties_do_not_depend_on_the_order(engines: list[AdapterEngine], adapter: int | None) -> None:
    assert choose_place(engines, adapter) == choose_place(engines[::-1], adapter)


@given(_ENGINES, _IDS)
def test_preparation_does_not_depend_on_the_order(
    engines: list[AdapterEngine], adapter: int
) -> None:
    assert choose_preparation(engines, adapter) == choose_preparation(engines[::-1], adapter)


@given(_ENGINES, _IDS)
def test_request_runs_where_its_adapter_was_loaded(
    engines: list[AdapterEngine], adapter: int
) -> None:
    idle = [replace(e, in_flight=0, running=frozenset(), slots=max(1, e.slots)) for e in engines]
    prepared = choose_preparation(idle, adapter)
    if prepared is not None:
        more = frozenset({adapter})
        loaded = [
            replace(e, in_memory=e.in_memory | more) if e.engine_id == prepared else e for e in idle
        ]
        place = choose_place(loaded, adapter)
        assert place is not None
        assert place.engine_id == prepared
        assert choose_preparation(loaded, adapter) is None
