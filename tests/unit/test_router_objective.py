"""A model's objective for the first token: who cannot get it in time need not wait."""

import pytest

from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import Grant, Leave, Refuse, Resume, TicketId
from serve_app.names import ModelName
from tests.support.router_post import FakeClock, FakeMailbox, enqueue, report
from tests.support.settings import write_args, write_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A = b"gateway-a"
TINY = ModelName("tiny")
OBJECTIVE_S = 5.0


class Desk:
    """A router of one engine that takes one request at a time."""

    def __init__(self, objective_s: float | None = OBJECTIVE_S) -> None:
        self.post, self.clock = FakeMailbox(), FakeClock()
        model = write_model("tiny", ttft_objective_s=objective_s)
        self.router = Router(TINY, parse_settings(write_args(model)), self.post, self.clock)
        self.router.handle(A, Resume(model=TINY))
        self.running: list[TicketId] = []
        self.refused: dict[str, Refuse] = {}
        self.look()

    def look(self) -> None:
        self.router.handle(b"e", report("e", max_running=1, model="tiny"))
        self.router.look_around()
        self.take()

    def send(self, ticket: str, tenant: str = "team-a") -> None:
        self.router.handle(A, enqueue(ticket, tenant))
        self.take()

    def end(self) -> None:
        self.router.handle(A, Leave(self.running.pop(), is_finished=True))
        self.take()

    def take(self) -> None:
        for mail in self.post.take(A):
            if isinstance(mail, Grant):
                self.running.append(mail.ticket)
            elif isinstance(mail, Refuse):
                self.refused[mail.ticket] = mail

    def be_busy(self) -> None:
        """Ten seconds at one request a second, with two always waiting, neither for long."""
        for second in range(12):
            self.send(f"{second}-a")
            if len(self.running) == 1 and second >= 2:
                self.end()
            self.clock.pass_s(1.0)
            self.look()
        assert not self.refused


def test_newcomer_that_would_be_late_is_refused_at_once_and_told_when_to_come() -> None:
    desk = Desk()
    desk.be_busy()
    for i in range(12):
        desk.send(f"more-{i}")
    assert desk.refused, "one a second, five in time"
    first = desk.refused[min(desk.refused, key=lambda name: int(name.removeprefix("more-")))]
    assert first.kind == "crowded"
    assert "ttft_objective_s" in first.reason
    assert first.retry_after_s >= 1.0
    assert 3 <= 12 - len(desk.refused) <= 5


def test_tenant_with_nothing_waiting_joins_behind_a_long_line_of_another() -> None:
    desk = Desk()
    desk.be_busy()
    for i in range(12):
        desk.send(f"more-{i}")
    desk.send("light", "team-b")
    assert "light" not in desk.refused


def test_one_that_has_waited_so_long_that_it_is_late_is_refused() -> None:
    desk = Desk()
    desk.send("runs")
    desk.send("waits")
    for _ in range(5):
        desk.clock.pass_s(1.0)
        desk.look()
    assert not desk.refused
    desk.clock.pass_s(1.0)
    desk.look()
    assert set(desk.refused) == {"waits"}
    assert desk.refused["waits"].kind == "overdue"


def test_burst_on_an_idle_model_is_not_refused_without_evidence() -> None:
    desk = Desk()
    for i in range(30):
        desk.send(f"{i}")
    assert not desk.refused


def test_without_an_objective_all_are_served_however_late() -> None:
    desk = Desk(None)
    desk.be_busy()
    for i in range(30):
        desk.send(f"more-{i}")
    for _ in range(20):
        desk.clock.pass_s(1.0)
        desk.look()
    assert not desk.refused
