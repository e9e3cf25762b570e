"""What the next router makes of what a dead one has left, and of what gateways tell it."""

import os
from pathlib import Path

import msgspec
import pytest

from deployments.known_engine import SILENT_ENGINE_S
from deployments.router import Router
from deployments.router_state import StateFile
from serve_app.config import parse_settings
from serve_app.messages import (
    Alive,
    EngineId,
    Enqueue,
    Grant,
    Leave,
    ModelStatus,
    Progress,
    Resume,
    RunningTicket,
    TicketId,
)
from serve_app.names import ModelName
from tests.support.router_post import FakeClock, FakeKeeper, FakeMailbox, enqueue, report
from tests.support.settings import write_args

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A, B, ENGINE = b"gateway-a", b"gateway-b", b"engine-1"


class Succession:
    """Routers one after the other, with one gateway that knows what is with it."""

    def __init__(self, max_running: int = 1) -> None:
        self.keeper, self.clock = FakeKeeper(), FakeClock()
        self.max_running = max_running
        self.waiting: dict[str, Enqueue] = {}
        self.running: dict[str, RunningTicket] = {}
        self.order: list[str] = []
        """Tenants in the order of their grants."""
        self.start()

    def start(self, **fairness: float) -> None:
        self.post = FakeMailbox()
        settings = parse_settings(write_args(fairness={"predicts_lengths": False} | fairness))
        self.router = Router(ModelName("tiny"), settings, self.post, self.clock, self.keeper)

    def save(self) -> None:
        self.keeper.save(msgspec.msgpack.encode(self.router.state()))

    def connect(self, *ended: Leave) -> None:
        running, waiting = list(self.running.values()), list(self.waiting.values())
        self.router.handle(A, Resume(waiting, running, list(ended)))
        self.router.handle(ENGINE, report("e1", max_running=self.max_running))
        self.read()

    def send(self, ticket: str, tenant: str, prompt_tokens: int) -> None:
        self.waiting[ticket] = enqueue(ticket, tenant, prompt_tokens=prompt_tokens)
        self.router.handle(A, self.waiting[ticket])
        self.read()

    def finish(self, ticket: str, n_tokens: int = 0) -> Leave:
        del self.running[ticket]
        leave = Leave(TicketId(ticket), is_finished=True, completion_tokens=n_tokens)
        self.router.handle(A, leave)
        self.read()
        return leave

    def read(self) -> None:
        for mail in self.post.take(A):
            if isinstance(mail, Grant) and mail.ticket in self.waiting:
                granted = self.waiting.pop(mail.ticket)
                self.running[mail.ticket] = RunningTicket(granted, mail.engine_id, 0)
                self.order.append(granted.tenant)

    def counters(self) -> dict[str, float]:
        counters = self.router._queue.counters()
        return {str(tenant): units / 1e6 for tenant, units in counters.items()}


def test_tenant_that_was_ahead_gains_nothing_from_the_death() -> None:
    orders = []
    for dies in (False, True):
        routers = Succession()
        routers.connect()
        routers.send("first", "other", prompt_tokens=5)
        routers.send("big", "ahead", prompt_tokens=50)
        for i in range(12):
            routers.send(f"a{i}", "ahead", prompt_tokens=10)
            routers.send(f"b{i}", "behind", prompt_tokens=10)
        routers.finish("first")
        assert list(routers.running) == ["big"]
        if dies:
            routers.save()
            routers.start()
            routers.connect()
        while routers.running:
            routers.finish(next(iter(routers.running)))
        orders.append(routers.order)
    assert orders[0][2:7] == ["behind"] * 5
    assert orders[0] == orders[1]


def test_what_ended_while_there_was_no_router_is_charged_once() -> None:
    routers = Succession(max_running=2)
    routers.connect()
    routers.send("t1", "a", prompt_tokens=7)
    routers.send("t2", "b", prompt_tokens=7)
    routers.router.handle(ENGINE, Progress({TicketId("t1"): 3, TicketId("t2"): 3}))
    routers.save()
    early = routers.finish("t2", n_tokens=4)
    routers.start()
    late = routers.finish("t1", n_tokens=10)
    for _ in range(2):
        routers.connect(early, late)
    level = 7  # To which "b" was lifted when it came.
    assert routers.counters() == {"a": 7 + 2 * 10, "b": level + 7 + 2 * 4}


def test_running_ticket_is_charged_what_the_dead_router_had_not_heard_of() -> None:
    routers = Succession()
    routers.connect()
    routers.send("t1", "a", prompt_tokens=7)
    routers.save()
    routers.start()
    running = routers.running["t1"]
    routers.running["t1"] = msgspec.structs.replace(running, completion_tokens=5)
    routers.connect()
    assert routers.counters() == {"a": 7 + 2 * 5}
    routers.send("t2", "a", prompt_tokens=7)
    assert "t2" in routers.waiting, "the engine is full with what ran before"


def test_grant_that_died_on_its_way_is_given_again_and_not_charged_twice() -> None:
    routers = Succession()
    routers.connect()
    routers.send("t1", "a", prompt_tokens=7)
    routers.save()
    routers.start()
    routers.waiting["t1"] = routers.running.pop("t1").enqueue
    routers.connect()
    assert "t1" in routers.running
    assert routers.counters() == {"a": 7}


def test_tickets_of_a_gateway_that_died_too_make_room_after_a_while() -> None:
    routers = Succession()
    routers.connect()
    routers.send("t1", "a", prompt_tokens=7)
    routers.save()
    routers.start()
    routers.running.clear()
    routers.router.handle(B, Resume(waiting=[enqueue("t2", "b")]))
    for _ in range(12):
        routers.clock.pass_s(1.0)
        routers.router.handle(B, Alive())
        routers.router.handle(ENGINE, report("e1", max_running=1))
        routers.router.look_around()
    assert [m.ticket for m in routers.post.take(B) if isinstance(m, Grant)] == ["t2"]


def test_changed_costs_let_everybody_start_anew() -> None:
    routers = Succession()
    routers.connect()
    routers.send("t1", "a", prompt_tokens=7)
    routers.save()
    routers.start(output_cost=3.0)
    assert routers.counters() == {}


@pytest.mark.parametrize("left", [b"", b"\x00 something else"])
def test_unreadable_state_does_not_keep_a_router_from_starting(left: bytes) -> None:
    routers = Succession()
    routers.keeper.save(left)
    routers.start()
    routers.connect()
    routers.send("t1", "a", prompt_tokens=7)
    assert routers.order == ["a"]


def test_state_file_keeps_the_last_state_for_its_owner_alone(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "router", ModelName("org/model"))
    assert file.load() is None
    file.save(b"one")
    file.save(b"two")
    assert StateFile(tmp_path / "router", ModelName("org/model")).load() == b"two"
    (path,) = (tmp_path / "router").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    os.utime(path, (1.0, 1.0))
    assert file.load() is None, "it is of another day"


def test_state_file_in_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "router").write_text("in the way")
    file = StateFile(tmp_path / "router", ModelName("tiny"))
    assert file.load() is None
    with pytest.raises(OSError, match="router"):
        file.save(b"one")


def test_engine_id_of_a_running_ticket_survives() -> None:
    routers = Succession()
    routers.connect()
    routers.send("t1", "a", prompt_tokens=7)
    assert routers.router.state().running[TicketId("t1")].engine_id == EngineId("e1")


def test_new_router_says_so_until_it_must_have_heard_every_engine() -> None:
    routers = Succession()
    routers.router.handle(A, Resume([], []))
    [first] = [mail for mail in routers.post.take(A) if isinstance(mail, ModelStatus)]
    assert first.is_settling
    routers.clock.pass_s(SILENT_ENGINE_S + 0.1)
    routers.router.look_around()
    *_, last = [mail for mail in routers.post.take(A) if isinstance(mail, ModelStatus)]
    assert not last.is_settling
