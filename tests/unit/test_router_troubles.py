"""What a router does about engines that keep failing, and about those that fail to start."""

import msgspec
import pytest

from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import (
    EngineId,
    EngineUnreachable,
    Grant,
    HoldOn,
    Leave,
    ModelStatus,
    Progress,
    Requeue,
    Resume,
    RunningTicket,
    TicketId,
)
from serve_app.metrics import Metrics
from serve_app.names import ModelName
from serve_app.policy.breaker import FIRST_S, MOST
from serve_app.telemetry import ENGINES_LOST, FAILED_STARTS
from tests.support.router_post import FakeClock, FakeMailbox, enqueue, report
from tests.support.settings import write_args

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GATEWAY = b"gateway"
BAD, GOOD = "e1", "e2"
"""The first one comes first where both have the same room."""


class Desk:
    """A router with two engines and one gateway."""

    def __init__(self, *engines: str) -> None:
        self.clock, self.post, self.metrics = FakeClock(), FakeMailbox(), Metrics()
        settings = parse_settings(write_args())
        self.router = Router(
            ModelName("tiny"), settings, self.post, self.clock, metrics=self.metrics
        )
        self.router.handle(GATEWAY, Resume())
        self.engines = engines
        self.report()

    def report(self) -> None:
        for engine in self.engines:
            self.router.handle(engine.encode(), report(engine, max_running=8))

    def pass_s(self, seconds: float) -> None:
        """Time in which engines report."""
        for _ in range(int(seconds)):
            self.clock.pass_s(1.0)
            self.report()
            self.router.look_around()

    def send(self, ticket: str) -> str | None:
        """Returns where a request goes."""
        self.router.handle(GATEWAY, enqueue(ticket))
        return self.granted().get(ticket)

    def fail(self, ticket: str, engine: str) -> str | None:
        """A request fails on an engine; returns where it goes from there."""
        run = RunningTicket(enqueue(ticket), None, 0)
        self.router.handle(GATEWAY, Requeue(run, EngineId(engine)))
        return self.granted().get(ticket)

    def granted(self) -> dict[str, str]:
        mail = self.post.take(GATEWAY)
        self.details = [m.engines for m in mail if isinstance(m, ModelStatus)][-1:]
        return {str(m.ticket): str(m.engine_id) for m in mail if isinstance(m, Grant)}

    def open(self) -> None:
        """One request fails on the bad engine until it is skipped."""
        engine = self.send("t0")
        for _ in range(MOST):
            assert engine == BAD
            engine = self.fail("t0", BAD)
        assert engine == GOOD
        self.router.handle(GATEWAY, Leave(TicketId("t0"), True, 1))


def test_engine_that_keeps_failing_is_skipped_and_the_request_served_elsewhere() -> None:
    desk = Desk(BAD, GOOD)
    desk.open()
    assert [desk.send(f"t{i}") for i in range(1, 5)] == [GOOD] * 4
    desk.router.look_around()
    desk.granted()
    assert [(e.engine_id, bool(e.detail)) for e in desk.details[0]] == [(BAD, True), (GOOD, False)]


def test_skipped_engine_is_tried_by_one_request_and_then_by_all() -> None:
    desk = Desk(BAD, GOOD)
    desk.open()
    desk.pass_s(FIRST_S + 1)
    assert desk.send("t1") == BAD
    assert desk.send("t2") == GOOD
    desk.router.handle(BAD.encode(), Progress({TicketId("t1"): 1}))
    assert desk.send("t3") == BAD


def test_short_answer_ends_the_trial_before_its_tokens_are_told() -> None:
    desk = Desk(BAD, GOOD)
    desk.open()
    desk.pass_s(FIRST_S + 1)
    assert desk.send("t1") == BAD
    desk.router.handle(GATEWAY, Leave(TicketId("t1"), True, 1))
    assert [desk.send("t2"), desk.send("t3")] == [BAD, GOOD]
    assert desk.send("t4") == BAD


def test_trial_that_fails_skips_the_engine_for_longer() -> None:
    desk = Desk(BAD, GOOD)
    desk.open()
    desk.pass_s(FIRST_S + 1)
    assert desk.send("t1") == BAD
    assert desk.fail("t1", BAD) == GOOD
    desk.pass_s(FIRST_S + 1)
    assert desk.send("t2") == GOOD


def test_only_engine_is_never_skipped() -> None:
    desk = Desk(BAD)
    assert desk.send("t0") == BAD
    for _ in range(2 * MOST):
        assert desk.fail("t0", BAD) == BAD


def test_engine_that_gateways_cannot_reach_is_skipped_though_it_reports() -> None:
    desk = Desk(BAD, GOOD)
    for _ in range(MOST):
        desk.router.handle(GATEWAY, EngineUnreachable(EngineId(BAD)))
        desk.pass_s(1.0)
    assert desk.send("t1") == GOOD


def test_failed_starts_wait_longer_each_time_until_one_succeeds() -> None:
    desk = Desk()
    waits_s = []
    for i in range(4):
        engine = f"new-{i}"
        desk.router.handle(engine.encode(), report(engine, "loading"))
        desk.router.handle(engine.encode(), report(engine, "failed"))
        more = msgspec.structs.replace(report(engine, "failed"), detail="and it holds on")
        desk.router.handle(engine.encode(), more)
        [hold_on] = [m for m in desk.post.take(engine.encode()) if isinstance(m, HoldOn)]
        assert hold_on.n_failed == i + 1
        waits_s.append(hold_on.wait_s)
    assert waits_s[0] == 0.0
    assert waits_s[1:] == sorted(set(waits_s[1:]))
    assert desk.metrics.value(FAILED_STARTS, "") == 4.0
    assert desk.metrics.value(ENGINES_LOST, "", "failed") == 4.0
    desk.router.handle(b"good", report("good"))
    assert desk.metrics.value(FAILED_STARTS, "") == 0.0


def test_engine_that_dies_while_it_serves_is_no_failed_start() -> None:
    desk = Desk(GOOD)
    desk.router.handle(GOOD.encode(), report(GOOD, "failed"))
    assert not any(isinstance(m, HoldOn) for m in desk.post.take(GOOD.encode()))
