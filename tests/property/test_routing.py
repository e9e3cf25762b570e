"""Invariants of `serve_app.policy.routing`."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.messages import EngineId
from serve_app.policy.routing import SLACK, EngineView, choose_engine, rank_beyond

_ENGINES = st.lists(
    st.builds(
        EngineView,
        engine_id=st.text("abcdef", min_size=1, max_size=3).map(EngineId),
        is_ready=st.booleans(),
        in_flight=st.integers(0, 12),
        room=st.integers(1, 10),
        cached_tokens=st.sampled_from((0, 0, 64, 128)),
    ),
    max_size=8,
    unique_by=lambda engine: engine.engine_id,
)


def _with_room(engines: list[EngineView]) -> list[EngineView]:
    return [e for e in engines if e.is_ready and e.in_flight < e.room]


def _within_bound(engines: list[EngineView]) -> list[EngineView]:
    ready = [e for e in engines if e.is_ready]
    n_requests, room = sum(e.in_flight for e in ready) + 1, sum(e.room for e in ready)
    return [
        e
        for e in _with_room(engines)
        if e.in_flight == 0 or e.in_flight * room < SLACK * n_requests * e.room
    ]


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
        equal = [e for e in _with_room(engines) if e.cached_tokens == chosen.cached_tokens]
        assert chosen.in_flight / chosen.room == min(e.in_flight / e.room for e in equal)


@given(_ENGINES)
def test_load_is_bounded(engines: list[EngineView]) -> None:
    chosen, within = choose_engine(engines), _within_bound(engines)
    assert chosen is None or chosen in within or not within


@given(_ENGINES)
def test_longest_prefix_first(engines: list[EngineView]) -> None:
    chosen = choose_engine(engines)
    if chosen is not None:
        most = max((e.cached_tokens for e in _within_bound(engines)), default=0)
        assert chosen.cached_tokens >= most


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
