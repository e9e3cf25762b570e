import msgspec
import pytest

from serve_app.config_model import ModelSettings
from serve_app.gateway.model_state import describe, follow
from serve_app.messages import (
    EngineId,
    EngineLoad,
    EngineState,
    EngineStatus,
    ModelStatus,
    ScalingStatus,
)
from tests.support.settings import write_model

ASLEEP = ScalingStatus(0, "no request for 600 s", 12.0)
WANTED = ScalingStatus(1, "work waits", 12.0)


def model(least: int) -> ModelSettings:
    return ModelSettings.model_validate(write_model(replicas={"min": least, "max": 2}))


def status(*states: EngineState, scaling: ScalingStatus | None = None) -> ModelStatus:
    engines = [
        EngineStatus(EngineId(f"e{i}"), state, f"it is {state}", EngineLoad())
        for i, state in enumerate(states)
    ]
    return ModelStatus("c", engines, 3, scaling=scaling)


@pytest.mark.parametrize(
    ("least", "states", "scaling", "has_front_end", "state"),
    [
        (1, ["ready"], None, True, "ready"),
        (1, ["ready"], None, False, "loading"),
        (1, ["loading"], WANTED, True, "loading"),
        (1, [], None, True, "loading"),
        (1, ["failed"], None, True, "failed"),
        (1, ["draining"], None, True, "draining"),
        (0, [], None, False, "loading"),
        (0, [], ASLEEP, True, "asleep"),
        (0, [], ASLEEP, False, "asleep"),
        (0, ["draining"], ASLEEP, True, "asleep"),
        (0, [], WANTED, True, "waking"),
        (0, ["loading"], WANTED, True, "waking"),
        (0, ["ready"], WANTED, False, "waking"),
        (0, ["ready"], WANTED, True, "ready"),
        (0, ["draining"], WANTED, True, "waking"),
        (0, ["failed"], WANTED, True, "failed"),
    ],
)
def test_state_says_how_a_model_stands(
    least: int,
    states: list[EngineState],
    scaling: ScalingStatus | None,
    has_front_end: bool,
    state: str,
) -> None:
    found = describe(model(least), status(*states, scaling=scaling), has_front_end=has_front_end)
    assert found.state == state
    assert found.takes_requests == (state in ("ready", "asleep", "waking"))


def test_waking_model_says_who_waits_how_long_at_most_and_how_long_it_took() -> None:
    found = describe(model(0), status("loading", scaling=WANTED), has_front_end=True)
    for words in ("it is loading", "3 requests wait, 900 s at most", "it took 12 s last time"):
        assert words in found.detail


def test_ready_model_says_why_another_engine_failed() -> None:
    found = describe(model(1), status("ready", "failed"), has_front_end=True)
    assert found.detail == "an engine failed: it is failed"


def test_ready_model_says_what_became_of_a_change_that_failed() -> None:
    went_back = msgspec.structs.replace(status("ready", "failed"), note="it went back")
    assert describe(model(1), went_back, has_front_end=True).detail == "it went back"


def test_router_that_is_new_does_not_take_a_served_model_away() -> None:
    served = status("loading", "ready")
    for heard in (status(), status("loading")):
        new = msgspec.structs.replace(heard, config_id="", waiting=7, is_settling=True)
        found = follow(served, new)
        assert (found.engines, found.config_id, found.waiting) == (served.engines, "c", 7)
        assert describe(model(1), found, has_front_end=True).takes_requests


def test_what_a_router_says_is_believed_once_it_serves_or_has_heard_all() -> None:
    served, other = status("ready", "ready"), status("failed", "ready")
    settling = msgspec.structs.replace(other, is_settling=True)
    assert follow(served, settling) is settling
    lost = status("loading")
    assert follow(served, lost) is lost
    unheard = msgspec.structs.replace(lost, is_settling=True)
    assert follow(status(), unheard) is unheard, "nobody was served before"
