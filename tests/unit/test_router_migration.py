"""What a router does when requests lose their engines."""

import msgspec
import pytest

from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import (
    Alive,
    EngineGone,
    EngineId,
    EngineLost,
    EngineUnreachable,
    Enqueue,
    Grant,
    Leave,
    Progress,
    Refuse,
    Requeue,
    Resume,
    RunningTicket,
    TicketId,
)
from serve_app.names import ModelName, TenantId
from serve_app.policy.fairness_options import UNITS
from tests.support.router_post import FakeClock, FakeKeeper, FakeMailbox, enqueue, report
from tests.support.settings import write_args

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A = b"gateway-a"
COSTS = {"prompt_cost": 1.0, "output_cost": 2.0, "predicts_lengths": False}


class Desk:
    """A router, its post, its clock, and a gateway that does what gateways do."""

    def __init__(self, **limits: float) -> None:
        self.clock = FakeClock()
        self.post = FakeMailbox()
        self.keeper = FakeKeeper()
        self.settings = parse_settings(write_args(limits=limits, fairness=COSTS))
        self.start()

    def start(self) -> None:
        """Starts a router, the successor of the one before."""
        self.router = Router(
            ModelName("tiny"), self.settings, self.post, self.clock, keeper=self.keeper
        )

    def ready(self, *engines: str, max_running: int = 8) -> None:
        for engine in engines:
            self.router.handle(engine.encode(), report(engine, max_running=max_running))

    def send(self, *tickets: str, tenant: str = "a", prompt_tokens: int = 5) -> None:
        for ticket in tickets:
            self.router.handle(A, enqueue(ticket, tenant, prompt_tokens=prompt_tokens))

    def produce(self, engine: str, ticket: str, n_tokens: int) -> None:
        self.router.handle(engine.encode(), Progress({TicketId(ticket): n_tokens}))

    def requeue(self, ticket: str, n_tokens: int = 0, strikes: int = 1, tenant: str = "a") -> None:
        run = describe(enqueue(ticket, tenant), None, n_tokens, strikes)
        self.router.handle(A, Requeue(run))

    def granted(self) -> dict[str, str]:
        mail = self.post.take(A)
        return {str(m.ticket): str(m.engine_id) for m in mail if isinstance(m, Grant)}

    def counter(self, tenant: str = "a") -> float:
        """Service that a tenant has paid for, in tokens of cost 1."""
        return self.router._queue.counters()[TenantId(tenant)] / UNITS


def describe(mail: Enqueue, engine: str | None, n_tokens: int, strikes: int = 0) -> RunningTicket:
    engine_id = None if engine is None else EngineId(engine)
    return RunningTicket(mail, engine_id, n_tokens, strikes)


def make_desk(**limits: float) -> Desk:
    desk = Desk(**limits)
    desk.router.handle(A, Resume())
    return desk


def test_requeued_ticket_goes_before_new_ones_and_pays_its_prompt_once() -> None:
    desk = make_desk()
    desk.ready("e1", max_running=1)
    desk.send("t1")
    assert desk.granted() == {"t1": "e1"}
    desk.send("t2", tenant="b")
    desk.produce("e1", "t1", 3)
    assert desk.counter() == 5 + 2 * 3
    desk.router.handle(A, EngineUnreachable(EngineId("e1")))
    desk.requeue("t1", n_tokens=3)
    assert desk.granted() == {}
    desk.ready("e2", max_running=1)
    assert desk.granted() == {"t1": "e2"}
    assert desk.counter() == 5 + 2 * 3


def test_tokens_that_died_with_an_engine_are_not_charged_again() -> None:
    desk = make_desk()
    desk.ready("e1", "e2")
    desk.send("t1")
    desk.produce("e1", "t1", 10)
    desk.router.handle(A, EngineUnreachable(EngineId("e1")))
    desk.requeue("t1", n_tokens=6)  # Four never reached the gateway.
    desk.produce("e2", "t1", 4)
    assert desk.counter() == 5 + 2 * 10
    desk.produce("e2", "t1", 1)
    assert desk.counter() == 5 + 2 * 11
    desk.router.handle(A, Leave(TicketId("t1"), True, 11))
    assert desk.counter() == 5 + 2 * 11


def test_late_progress_of_a_lost_engine_is_not_charged() -> None:
    desk = make_desk()
    desk.ready("e1", "e2")
    desk.send("t1")
    desk.router.handle(A, EngineUnreachable(EngineId("e1")))
    desk.requeue("t1", n_tokens=2)
    desk.produce("e1", "t1", 50)
    assert desk.counter() == 5 + 2 * 2


@pytest.mark.parametrize("is_leaving", [True, False])
def test_gateways_hear_of_an_engine_that_left_or_went_silent(is_leaving: bool) -> None:
    desk = make_desk()
    desk.ready("e1")
    desk.send("t1")
    desk.post.take(A)
    if is_leaving:
        desk.router.handle(b"e1", EngineGone(EngineId("e1")))
    else:
        for _ in range(6):
            desk.clock.pass_s(1.0)
            desk.router.handle(A, Alive())
            desk.router.look_around()
    lost = [m for m in desk.post.take(A) if isinstance(m, EngineLost)]
    assert lost == [EngineLost(EngineId("e1"), is_leaving)]


def test_router_that_slept_itself_takes_nobody_for_dead() -> None:
    desk = make_desk()
    desk.ready("e1")
    desk.send("t1")
    desk.clock.pass_s(60.0)
    desk.router.look_around()
    assert not [m for m in desk.post.take(A) if isinstance(m, EngineLost)]
    desk.clock.pass_s(1.0)
    desk.router.look_around()
    assert [m for m in desk.post.take(A) if isinstance(m, EngineLost)]


def test_suspect_has_its_engine_to_itself_until_it_gets_a_token() -> None:
    desk = make_desk(max_engine_deaths_in_a_row=3)
    desk.ready("e1")
    desk.send("t1", "t2")
    desk.router.handle(A, EngineUnreachable(EngineId("e1")))
    for ticket in ("t1", "t2"):
        desk.requeue(ticket, strikes=2)
    desk.granted()
    desk.ready("e2")
    desk.send("t3")
    assert desk.granted() == {"t1": "e2"}
    desk.produce("e2", "t1", 1)
    assert desk.granted() == {"t2": "e2"}, "the next suspect, alone again"
    desk.router.handle(A, Leave(TicketId("t2")))
    assert desk.granted() == {"t3": "e2"}


def test_other_engines_serve_while_a_suspect_is_on_probation() -> None:
    desk = make_desk()
    desk.ready("e1", "e2")
    desk.requeue("t1", strikes=2)
    assert desk.granted() == {"t1": "e1"}
    desk.send("t2", "t3")
    assert desk.granted() == {"t2": "e2", "t3": "e2"}


def test_requeued_ticket_waits_max_wait_from_then_on() -> None:
    desk = make_desk(max_wait_s=30)
    desk.ready("e1")
    desk.send("t1")
    for _ in range(100):
        desk.clock.pass_s(1.0)
        desk.ready("e1")
        desk.router.handle(A, Alive())
        desk.router.look_around()
    desk.router.handle(A, EngineUnreachable(EngineId("e1")))
    desk.requeue("t1")
    desk.post.take(A)
    desk.clock.pass_s(1.0)
    desk.router.look_around()
    assert not [m for m in desk.post.take(A) if isinstance(m, Refuse)]
    for _ in range(31):
        desk.clock.pass_s(1.0)
        desk.router.handle(A, Alive())
        desk.router.look_around()
    assert [m.kind for m in desk.post.take(A) if isinstance(m, Refuse)] == ["overdue"]


def test_successor_of_a_router_resumes_what_had_lost_its_engine_for_nothing() -> None:
    desk = make_desk()
    desk.ready("e1")
    desk.send("t1", prompt_tokens=5)
    desk.produce("e1", "t1", 3)
    desk.router.handle(A, EngineUnreachable(EngineId("e1")))
    desk.requeue("t1", n_tokens=3)
    desk.keeper.save(msgspec.msgpack.encode(desk.router.state()))
    desk.granted()
    desk.start()
    desk.router.handle(A, Resume(running=[describe(enqueue("t1", "a"), None, 3, 1)]))
    desk.ready("e2")
    assert desk.granted() == {"t1": "e2"}
    assert desk.counter() == 5 + 2 * 3


def test_router_without_memory_charges_a_requeued_ticket_once() -> None:
    desk = make_desk()
    desk.router.handle(A, Resume(running=[describe(enqueue("t1", "a"), None, 3, 1)]))
    desk.router.handle(A, Resume(running=[describe(enqueue("t1", "a"), None, 3, 1)]))
    desk.ready("e2")
    assert desk.granted() == {"t1": "e2"}
    assert desk.counter() == 5 + 2 * 3


def take_over(desk: Desk, ticket: str, n_tokens: int, paid_tokens: int) -> None:
    run = describe(enqueue(ticket, "a", prompt_tokens=5), None, n_tokens)
    desk.router.handle(A, Requeue(msgspec.structs.replace(run, paid_tokens=paid_tokens)))


@pytest.mark.parametrize("is_finished", [True, False])
def test_what_another_cell_has_charged_is_not_charged_here(is_finished: bool) -> None:
    desk = make_desk()
    desk.ready("e1", "e2")
    take_over(desk, "t1", 7, 7)
    assert set(desk.granted()) == {"t1"}
    assert desk.counter() == 0
    desk.produce("e1", "t1", 3)
    desk.produce("e2", "t1", 3)
    assert desk.counter() == 2 * 3
    # It was more than that engine said before the gateway heard the end; of the prompt, some was
    # in the cache of the cell that it came from.
    desk.router.handle(A, Leave(TicketId("t1"), is_finished, 11, cached_tokens=4))
    assert desk.counter() == 2 * 4


def test_guest_that_loses_its_engine_here_too_pays_what_it_got_here_once() -> None:
    desk = make_desk()
    desk.ready("e1")
    take_over(desk, "t1", 7, 7)
    desk.produce("e1", "t1", 3)
    desk.router.handle(A, EngineUnreachable(EngineId("e1")))
    take_over(desk, "t1", 10, 7)
    desk.ready("e2")
    desk.produce("e2", "t1", 2)
    assert desk.counter() == 2 * 5


def test_new_router_charges_a_guest_no_more_than_the_old_one_did() -> None:
    desk = make_desk()
    desk.ready("e1")
    take_over(desk, "t1", 7, 7)
    desk.produce("e1", "t1", 3)
    desk.keeper.save(msgspec.msgpack.encode(desk.router.state()))
    desk.start()
    run = describe(enqueue("t1", "a", prompt_tokens=5), "e1", 11)
    desk.router.handle(A, Resume(running=[msgspec.structs.replace(run, paid_tokens=7)]))
    assert desk.counter() == 2 * 4
    desk.router.handle(A, Leave(TicketId("t1"), True, 12))
    assert desk.counter() == 2 * 5


def test_nobody_learns_how_long_answers_are_from_a_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = make_desk()
    desk.ready("e1")
    learned: list[int] = []
    predictor = desk.router._queue._predictor
    monkeypatch.setattr(predictor, "learn", lambda tenant, n: learned.append(n))
    take_over(desk, "t1", 7, 7)
    desk.router.handle(A, Leave(TicketId("t1"), True, 8))
    desk.send("t2")
    desk.router.handle(A, Leave(TicketId("t2"), True, 9))
    assert learned == [9]


def test_guest_that_ended_while_the_router_was_away_is_charged_for_what_it_got_here() -> None:
    desk = make_desk()
    desk.ready("e1")
    take_over(desk, "t1", 500, 500)
    desk.produce("e1", "t1", 3)
    desk.keeper.save(msgspec.msgpack.encode(desk.router.state()))
    desk.start()
    desk.router.handle(A, Resume(ended=[Leave(TicketId("t1"), True, 505, cached_tokens=2)]))
    assert desk.counter() == 2 * 5
