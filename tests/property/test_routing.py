"""Invariants of `serve_app.policy.routing`."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.messages import EngineId
from serve_app.policy.routing import EngineView, choose_engine, rank_beyond

_ENGINES = st.lists(
    st.builds(
        EngineView,
        engine_id=st.text("abcdef", min_size=1, max_size=3).map(EngineId),
        is_ready=st.booleans(),
        in_flight=st.integers(0, 12),
        room=st.integers(1, 10),
    ),
    max_size=8,
    unique_by=lambda engine: engine.engine_id,
)


def _with_room(engines: list[EngineView]) -> dict[EngineId, float]:
    return {
        e.engine_id: e.in_flight / e.room for e in engines if e.is_ready and e.in_flight < e.room
    }


@given(_ENGINES)
def test_never_beyond_room(engines: list[EngineView]) -> None:
    chosen = choose_engine(engines)
    assert chosen is None or chosen in _with_room(engines)


@given(_ENGINES)
def test_work_conserving(engines: list[EngineView]) -> None:
    assert (choose_engine(engines) is None) == (not _with_room(engines))


@given(_ENGINES)
def test_least_loaded(engines: list[EngineView]) -> None:
    chosen = choose_engine(engines)
    if chosen is not None:
        use = _with_room(engines)
        assert use[chosen] == min(use.values())


@given(_ENGINES)
def test_ties_do_not_depend_on_the_order(engines: list[EngineView]) -> None:
    other = list(reversed(engines))
    assert choose_engine(engines) == choose_engine(other)


@given(_ENGINES)
def test_beyond_is_bounded(engines: list[EngineView]) -> None:
    views = {engine.engine_id: engine for engine in engines}
    chosen = [views[engine_id] for engine_id in rank_beyond(engines)]
    assert all(e.is_ready and e.in_flight < e.room + max(1, e.room / 8) for e in chosen)
    loads = [engine.in_flight / engine.room for engine in chosen]
    assert loads == sorted(loads), "the least loaded is asked first"
