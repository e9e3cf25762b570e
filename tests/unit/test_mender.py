"""What is deployed when Serve has given a model's engines up, and for how long it is remembered."""

import copy
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from deployments.mender import Mender, Staff, find_cause
from serve_app.config import parse_settings
from serve_app.main import _engine, _router
from serve_app.model_entry import find_entry
from serve_app.names import ModelName
from serve_app.policy.mending import FIRST_S, SETTLED_S
from serve_app.serve_control import Deployed, EngineDeployment, Memory
from tests.support.router_post import FakeClock
from tests.support.settings import write_args, write_model

TINY, OTHER = ModelName("tiny"), ModelName("other")
WHOLE = EngineDeployment(is_given_up=False, is_whole=True)
GIVEN_UP = EngineDeployment(is_given_up=True, message="no such file: nowhere")
FULL = {TINY: Staff(2, 2)}
ONE_DIED = {TINY: Staff(1, 2)}


class FakeServe:
    """One application: what was deployed for it last, and by whom."""

    def __init__(self) -> None:
        self.args = write_args(write_model(TINY), write_model(OTHER))
        self.engines = WHOLE
        self.is_mended = False
        self.n_deployed = 0
        self.memories: dict[ModelName, Memory] = {}

    def people_deploy(self, model: dict[str, Any], engines: EngineDeployment) -> None:
        self.args = write_args(model, write_model(OTHER))
        self.engines, self.is_mended = engines, False
        self.n_deployed += 1

    def observe(self, models: Iterable[ModelName]) -> Deployed:
        engines = dict.fromkeys(models, self.engines)
        return Deployed(self.n_deployed, self.is_mended, self.engines is WHOLE, engines)

    def read_args(self) -> dict[str, Any]:
        return copy.deepcopy(self.args)

    def deploy(self, args: dict[str, Any]) -> None:
        self.args, self.is_mended = args, True
        self.n_deployed += 1

    def recall(self, model: ModelName) -> Memory:
        return self.memories.get(model, Memory())

    def remember(self, model: ModelName, memory: Memory) -> None:
        self.memories[model] = memory

    @property
    def entry(self) -> dict[str, Any]:
        entry = find_entry(self.args, TINY)
        assert entry is not None
        return dict(entry)


class Desk:
    """A mender, its Serve and its clock."""

    def __init__(self) -> None:
        self.serve, self.clock = FakeServe(), FakeClock()
        self.start_anew()

    def start_anew(self) -> None:
        self.mender = Mender(self.serve, lambda: FULL, self.clock)

    def look_for(self, seconds: float, staff: dict[ModelName, Staff]) -> None:
        for _ in range(int(seconds)):
            self.clock.pass_s(1.0)
            self.mender.look(staff)


@pytest.fixture
def desk() -> Desk:
    found = Desk()
    found.look_for(2, FULL)
    return found


def broken(**changes: Any) -> dict[str, Any]:
    return write_model(TINY, source={"kind": "local", "path": "/nowhere"}, **changes)


def test_failed_update_is_left_as_it_is_while_all_engines_run(desk: Desk) -> None:
    desk.serve.people_deploy(broken(), GIVEN_UP)
    desk.look_for(1000, FULL)
    assert desk.serve.n_deployed == 1
    assert desk.mender.notes[TINY] == ""


def test_model_goes_back_to_what_ran_when_an_engine_of_a_failed_update_is_missing(
    desk: Desk,
) -> None:
    desk.serve.people_deploy(broken(aliases=["little"], replicas={"min": 2, "max": 2}), GIVEN_UP)
    desk.look_for(SETTLED_S + 1, ONE_DIED)
    assert desk.serve.entry == write_model(
        TINY, aliases=["little"], replicas={"min": 2, "max": 2}
    ), "engines are as before, what does not concern them is as it was deployed"
    assert find_entry(desk.serve.args, OTHER) == write_model(OTHER)
    desk.serve.engines = WHOLE
    desk.look_for(2, FULL)
    assert "nowhere" in desk.mender.notes[TINY]
    assert desk.serve.n_deployed == 2


def test_version_that_ran_is_known_to_the_next_router(desk: Desk) -> None:
    desk.serve.people_deploy(broken(), GIVEN_UP)
    desk.start_anew()
    desk.look_for(SETTLED_S + 1, ONE_DIED)
    assert desk.serve.entry == write_model(TINY)


def test_first_version_is_tried_again_ever_later() -> None:
    desk = Desk()
    desk.serve.people_deploy(broken(), GIVEN_UP)
    tried_s: list[int] = []
    for second in range(int(FIRST_S * 16)):
        desk.look_for(1, {TINY: Staff(0, 1)})
        if desk.serve.n_deployed > len(tried_s) + 1:
            tried_s.append(second)
    assert len(tried_s) == 4
    waits_s = [later - sooner for sooner, later in pairwise(tried_s)]
    assert waits_s == [2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S]
    assert desk.serve.entry["rollout"] == {"attempt": 4}


def test_new_attempt_restarts_no_engine_and_is_a_version_of_its_own(desk: Desk) -> None:
    def deployment(entry: dict[str, Any]) -> Any:
        settings = parse_settings(write_args(entry))
        shared = settings.model_dump(mode="json")
        router = _router(TINY, settings, shared)
        return _engine(settings.models[0], settings, router)._bound_deployment._deployment_config

    first = deployment(write_model(TINY))
    again = deployment(write_model(TINY, rollout={"attempt": 1}))
    assert first.version == again.version
    assert first.health_check_period_s != again.health_check_period_s


def test_what_somebody_deploys_afterwards_begins_anew(desk: Desk) -> None:
    desk.serve.people_deploy(broken(), GIVEN_UP)
    desk.look_for(SETTLED_S + 1, ONE_DIED)
    desk.serve.people_deploy(broken(), GIVEN_UP)
    desk.look_for(1, FULL)
    assert desk.mender.notes[TINY] == ""
    desk.look_for(SETTLED_S + 1, ONE_DIED)
    assert desk.serve.entry == write_model(TINY), "at once, as the first time"


def test_version_without_a_running_engine_is_not_taken_for_one_that_ran() -> None:
    desk = Desk()
    asleep = {TINY: Staff(0, 0)}
    desk.look_for(5, asleep)
    assert desk.serve.memories == {}


def test_cause_is_found_in_a_traceback() -> None:
    text = (
        "failed 3 times. Error:\n\x1b[36mray::init()\x1b[39m\n  File x\nEngineStartError: nowhere\n"
    )
    assert find_cause(text) == "EngineStartError: nowhere"
    assert find_cause("\n") == "no reason was given"
