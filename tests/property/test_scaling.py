"""Invariants of `serve_app.policy.scaling`."""

import math
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.config_scaling import ScalingSettings
from serve_app.policy.scaling import Look, Scaler, Wanted, add_room

_SETTINGS = st.builds(
    ScalingSettings,
    load=st.sampled_from([0.5, 0.8, 1.0]),
    ttft_target_s=st.sampled_from([0.5, 2.0]),
    scale_down_after_s=st.sampled_from([5.0, 30.0]),
    sleep_after_s=st.sampled_from([5.0, 30.0]),
)
_HAPPENINGS = st.builds(
    Look,
    now_s=st.just(0.0),
    arrived=st.floats(0.0, 5000.0),
    done=st.floats(0.0, 5000.0),
    waiting=st.floats(0.0, 20_000.0),
    n_requests=st.integers(0, 20),
    n_ready=st.integers(0, 5),
    fill=st.floats(0.0, 5.0),
    n_first_tokens=st.integers(0, 20),
    n_late=st.integers(0, 20),
    start_s=st.sampled_from([0.0, 3.0, 20.0]),
)


def _sane(look: Look) -> Look:
    """What waits is of requests, and late ones are among the first tokens."""
    return replace(
        look,
        waiting=look.waiting if look.n_requests else 0.0,
        fill=min(look.fill, float(look.n_ready)),
        n_late=min(look.n_late, look.n_first_tokens),
    )


_HISTORIES = st.lists(_HAPPENINGS.map(_sane), min_size=1, max_size=60)


def play(scaler: Scaler, history: Sequence[Look]) -> list[Wanted]:
    """One look a second."""
    return [scaler.decide(replace(look, now_s=float(i))) for i, look in enumerate(history)]


@given(_SETTINGS, _HISTORIES, st.integers(0, 2), st.integers(0, 6))
def test_within_bounds(chosen: ScalingSettings, history: list[Look], least: int, more: int) -> None:
    most = max(least + more, 1)
    for wanted in play(Scaler(chosen, least, most, max(least, 1)), history):
        assert least <= wanted.engines <= most


@given(_SETTINGS, _HISTORIES)
def test_up_at_once(chosen: ScalingSettings, history: list[Look]) -> None:
    for wanted in play(Scaler(chosen, 1, 50, 1), history):
        assert wanted.engines >= min(math.ceil(wanted.need - 0.05), 50)


@given(_SETTINGS, _HISTORIES)
def test_down_slowly(chosen: ScalingSettings, history: list[Look]) -> None:
    found = play(Scaler(chosen, 1, 50, 1), history)
    for i, wanted in enumerate(found):
        lately = found[max(0, i - int(chosen.scale_down_after_s)) : i + 1]
        assert wanted.engines >= min(max(math.ceil(w.need - 0.05) for w in lately), 50)


@given(_SETTINGS, _HISTORIES)
def test_wakes_at_once(chosen: ScalingSettings, history: list[Look]) -> None:
    for look, wanted in zip(history, play(Scaler(chosen, 0, 5, 0), history), strict=True):
        assert wanted.engines >= 1 or look.n_requests == 0


@given(_SETTINGS, st.lists(st.one_of(_HAPPENINGS.map(_sane), st.just(Look(0.0))), max_size=80))
def test_sleeps_only_when_idle(chosen: ScalingSettings, history: list[Look]) -> None:
    for i, wanted in enumerate(play(Scaler(chosen, 0, 5, 1), history)):
        since = max(0, i - math.ceil(chosen.sleep_after_s) + 1)
        if wanted.engines == 0:
            assert i >= chosen.sleep_after_s
            assert not any(look.n_requests or look.arrived for look in history[since : i + 1])


@settings(max_examples=30)
@given(_SETTINGS, _HAPPENINGS.map(_sane))
def test_steady_load_settles(chosen: ScalingSettings, look: Look) -> None:
    found = play(Scaler(chosen, 1, 1000, 1), [replace(look, n_late=0)] * 1800)
    assert len({wanted.engines for wanted in found[-300:]}) == 1


@given(_SETTINGS, _HISTORIES, _HAPPENINGS.map(_sane), st.floats(1.0, 10_000.0))
def test_more_work_never_fewer(
    chosen: ScalingSettings, history: list[Look], last: Look, more: float
) -> None:
    last = replace(last, n_requests=last.n_requests + 1)
    less = play(Scaler(chosen, 0, 50, 1), [*history, last])[-1]
    rest = replace(last, waiting=last.waiting + more)
    assert play(Scaler(chosen, 0, 50, 1), [*history, rest])[-1].engines >= less.engines


@given(st.floats(0.05, 1.0))
def test_load_is_of_one_engine(load: float) -> None:
    assert math.isclose(add_room(load, load), 1.0)


@given(st.floats(0.05, 1.0), st.floats(0.01, 100.0), st.floats(1.0, 10.0))
def test_many_are_fuller(load: float, busy: float, times: float) -> None:
    assert add_room(busy * times, load) <= times * add_room(busy, load) + 1e-9
