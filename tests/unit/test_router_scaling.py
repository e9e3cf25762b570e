"""What a router says of the number of engines, and whom it lets wait for them."""

import pytest

from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import (
    Alive,
    EngineId,
    Leave,
    ModelStatus,
    Progress,
    Refuse,
    Resume,
    ScalingStatus,
    TicketId,
    Wake,
)
from serve_app.metrics import Metrics
from serve_app.names import ModelName
from serve_app.telemetry import WANTED_ENGINES
from tests.support.router_post import FakeClock, FakeMailbox, enqueue, report
from tests.support.settings import write_args, write_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A, ENGINE = b"gateway-a", b"engine-1"
TINY = ModelName("tiny")


class FakeBoard:
    """Keeps the numbers in memory."""

    def __init__(self, engines: int | None = None) -> None:
        self.engines = {} if engines is None else {TINY: engines}

    def read(self, model: ModelName) -> int | None:
        return self.engines.get(model)

    def write(self, model: ModelName, engines: int) -> None:
        self.engines[model] = engines


class Desk:
    """A router of one model that scales, with its post and its clock."""

    def __init__(
        self,
        least: int = 0,
        most: int = 4,
        engines: int | None = None,
        objective_s: float | None = None,
    ) -> None:
        self.clock, self.post = FakeClock(), FakeMailbox()
        autoscaling = {"sleep_after_s": 30.0, "scale_down_after_s": 20.0, "wake_timeout_s": 60.0}
        replicas = {"min": least, "max": most}
        model = write_model(
            replicas=replicas, autoscaling=autoscaling, ttft_objective_s=objective_s
        )
        self.metrics = Metrics()
        settings = parse_settings(write_args(model, limits={"max_wait_s": 10.0}))
        self.board = FakeBoard(engines)
        self.router = Router(
            TINY, settings, self.post, self.clock, metrics=self.metrics, board=self.board
        )
        self.router.handle(A, Resume(model=TINY))

    def pass_s(self, seconds: int, *engines: str) -> None:
        for _ in range(seconds):
            self.clock.pass_s(1.0)
            self.router.handle(A, Alive())
            for engine in engines:
                self.router.handle(ENGINE, report(engine, model=TINY))
            self.router.look_around()

    def status(self) -> ModelStatus:
        mail = self.post.take(A)
        return next(m for m in reversed(mail) if isinstance(m, ModelStatus))

    def scaling(self) -> ScalingStatus:
        scaling = self.status().scaling
        assert scaling is not None
        return scaling

    def enqueue(self, n: int, first: int = 0) -> None:
        for i in range(first, first + n):
            self.router.handle(A, enqueue(f"t{i}", prompt_tokens=100, max_tokens=100))

    def refusals(self) -> list[str]:
        return [m.reason for m in self.post.take(A) if isinstance(m, Refuse)]


def test_new_model_starts_one_engine_and_then_sleeps() -> None:
    desk = Desk()
    desk.pass_s(100)
    assert desk.scaling().wanted == 1
    desk.pass_s(31, "e1")
    assert desk.scaling().wanted == 0


def test_router_goes_on_from_what_its_predecessor_wanted() -> None:
    desk = Desk(engines=3)
    desk.pass_s(1, "e1", "e2", "e3")
    assert desk.scaling().wanted == 3


def test_number_that_was_fixed_begins_with_the_engines_that_run() -> None:
    desk = Desk(least=3, most=3, engines=7)
    desk.pass_s(1, "e1", "e2", "e3")
    assert desk.metrics.value(WANTED_ENGINES, TINY) == 3
    model = write_model(replicas={"min": 1, "max": 4})
    desk.router.configure(parse_settings(write_args(model)))
    desk.pass_s(1, "e1", "e2", "e3")
    assert desk.scaling().wanted == 3
    desk.router.configure(parse_settings(write_args(write_model("other", domain=TINY))))
    desk.pass_s(1)
    assert desk.metrics.value(WANTED_ENGINES, TINY) == 0


def test_why_an_engine_could_not_start_is_forgotten_when_the_model_is_woken() -> None:
    desk = Desk(engines=0)
    desk.router.handle(ENGINE, report("e1", "failed", model=TINY))
    desk.pass_s(10)
    assert [e.state for e in desk.status().engines] == ["failed"]
    desk.enqueue(1)
    desk.pass_s(1)
    assert desk.status().engines == []


def test_waiting_request_wakes_a_sleeping_model() -> None:
    desk = Desk(engines=0)
    desk.pass_s(1)
    assert desk.scaling().wanted == 0
    desk.enqueue(1)
    desk.pass_s(1)
    assert desk.scaling().wanted == 1


def test_request_that_no_gateway_can_read_wakes_it_too() -> None:
    desk = Desk(engines=0)
    desk.router.handle(A, Wake())
    desk.pass_s(1)
    assert desk.scaling().wanted == 1


def test_request_waits_for_a_sleeping_model_as_long_as_is_set_and_not_for_ever() -> None:
    desk = Desk(engines=0)
    desk.enqueue(1)
    desk.pass_s(59)
    assert desk.refusals() == []
    desk.pass_s(3)
    (reason,) = desk.refusals()
    assert "wake_timeout_s is 60 s" in reason


def test_time_until_a_model_is_awake_is_not_time_that_a_request_waits_for_room() -> None:
    desk = Desk(engines=0)
    desk.enqueue(3)
    desk.pass_s(40)
    desk.pass_s(8, "e1")
    assert desk.refusals() == []
    desk.pass_s(4, "e1")
    (reason,) = desk.refusals()
    assert "max_wait_s is 10 s" in reason


def test_nor_is_it_time_that_makes_a_first_token_late() -> None:
    desk = Desk(engines=0, objective_s=5.0)
    desk.enqueue(3)
    desk.pass_s(40)
    desk.pass_s(4, "e1")
    assert desk.refusals() == []
    desk.pass_s(4, "e1")
    (reason,) = desk.refusals()
    assert "ttft_objective_s" in reason


def test_backlog_raises_the_number_and_its_end_lowers_it_late() -> None:
    desk = Desk(least=1)
    desk.enqueue(2)
    for second in range(8):
        for i in range(2):
            desk.router.handle(ENGINE, Progress({TicketId(f"t{i}"): 5}))
        desk.pass_s(1, "e1")
        if second == 4:
            desk.enqueue(8, first=2)
    assert desk.scaling().wanted > 1
    for i in range(10):
        desk.router.handle(A, Leave(TicketId(f"t{i}"), is_finished=True, completion_tokens=50))
    desk.pass_s(15, "e1")
    assert desk.scaling().wanted > 1
    desk.pass_s(200, "e1")
    assert desk.scaling().wanted == 1


def test_number_of_a_model_that_does_not_scale_is_not_said() -> None:
    desk = Desk(least=2, most=2)
    desk.pass_s(1)
    assert desk.status().scaling is None


def test_what_an_engine_took_to_start_is_known() -> None:
    desk = Desk(engines=0)
    desk.pass_s(1)
    desk.enqueue(1)
    desk.pass_s(1)
    desk.pass_s(7)
    desk.pass_s(1, str(EngineId("e1")))
    assert desk.scaling().start_s == 8.0
