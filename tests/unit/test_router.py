from collections.abc import Sequence

import msgspec
import pytest

from deployments.router import Router
from serve_app.config import cost_factors_of, parse_settings
from serve_app.messages import (
    Alive,
    EngineGone,
    EngineId,
    EngineMail,
    EngineUnreachable,
    FrontEndOffer,
    FrontEndPayload,
    FrontEndWanted,
    GatewayMail,
    Grant,
    HoldOn,
    Introduce,
    Leave,
    ModelStatus,
    Refuse,
    Resume,
    RunningTicket,
    TicketId,
)
from serve_app.names import ModelName
from tests.support.router_post import FakeClock, FakeMailbox, enqueue, report
from tests.support.settings import write_args, write_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A, B, ENGINE = b"gateway-a", b"gateway-b", b"engine-1"


class Desk:
    """A router with its post and its clock."""

    def __init__(self, *, preempts: bool = True, **limits: float) -> None:
        self.clock = FakeClock()
        self.post = FakeMailbox()
        fairness = {"preempts": preempts}
        settings = parse_settings(write_args(limits=limits, fairness=fairness))
        self.router = Router(ModelName("tiny"), settings, self.post, self.clock)
        self.connect(A)

    def connect(self, gateway: bytes, resume: Resume | None = None) -> None:
        self.router.handle(gateway, resume or Resume())
        self.post.take(gateway)

    def enqueue(self, *tickets: str, gateway: bytes = A) -> None:
        for ticket in tickets:
            self.router.handle(gateway, enqueue(ticket))

    def leave(self, ticket: str, gateway: bytes = A) -> None:
        self.router.handle(gateway, Leave(TicketId(ticket)))

    def granted(self, gateway: bytes = A) -> dict[str, str]:
        """The engine of each ticket that was granted since the last look."""
        return granted(self.post.take(gateway))

    def pass_s(self, seconds: float, gateways: Sequence[bytes] = (), engines: int = 0) -> None:
        """Lets time pass while these gateways and engines show that they live."""
        for _ in range(round(seconds)):
            self.clock.pass_s(1.0)
            for gateway in gateways:
                self.router.handle(gateway, Alive())
            for i in range(1, engines + 1):
                self.router.handle(ENGINE, report(f"e{i}"))
            self.router.look_around()


def granted(mail: Sequence[GatewayMail | EngineMail]) -> dict[str, str]:
    return {str(m.ticket): str(m.engine_id) for m in mail if isinstance(m, Grant)}


def refused(mail: Sequence[GatewayMail | EngineMail]) -> dict[str, str]:
    return {str(m.ticket): m.kind for m in mail if isinstance(m, Refuse)}


def last_status(mail: Sequence[GatewayMail | EngineMail]) -> ModelStatus:
    return next(m for m in reversed(mail) if isinstance(m, ModelStatus))


def test_router_grants_at_once_where_there_is_room() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.enqueue("t1")
    assert desk.granted() == {"t1": "e1"}


def test_router_holds_requests_until_an_engine_is_ready() -> None:
    desk = Desk()
    desk.enqueue("t1")
    desk.router.handle(ENGINE, report("e1", "loading"))
    assert desk.granted() == {}
    desk.router.handle(ENGINE, report("e1"))
    assert desk.granted() == {"t1": "e1"}


def test_router_fills_engines_evenly_and_not_beyond_their_room() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.router.handle(ENGINE, report("e2"))
    desk.enqueue("t1", "t2", "t3", "t4", "t5")
    found = desk.granted()
    assert sorted(found.values()) == ["e1", "e1", "e2", "e2"]
    assert "t5" not in found


def test_router_heeds_the_configured_room_before_the_engines_own() -> None:
    desk = Desk(max_running_per_engine=1)
    desk.router.handle(ENGINE, report("e1", max_running=8))
    desk.enqueue("t1", "t2")
    assert desk.granted() == {"t1": "e1"}


def test_leave_of_a_running_ticket_makes_room_for_a_waiting_one() -> None:
    desk = Desk(max_running_per_engine=1)
    desk.router.handle(ENGINE, report("e1"))
    desk.enqueue("t1", "t2")
    desk.granted()
    desk.leave("t1")
    assert desk.granted() == {"t2": "e1"}


def test_leave_of_a_waiting_ticket_takes_it_out_of_the_queue() -> None:
    desk = Desk(max_running_per_engine=1)
    desk.router.handle(ENGINE, report("e1"))
    desk.enqueue("t1", "t2", "t3")
    desk.granted()
    desk.leave("t2")
    desk.leave("t2")
    desk.leave("t1")
    assert desk.granted() == {"t3": "e1"}


def test_repeated_enqueue_is_granted_once() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.enqueue("t1", "t1")
    mail = desk.post.take(A)
    assert [m.ticket for m in mail if isinstance(m, Grant)] == ["t1"]


def test_request_beyond_max_waiting_is_refused_and_those_before_it_are_kept() -> None:
    desk = Desk(max_waiting=2)
    desk.enqueue("t1", "t2", "t3")
    assert refused(desk.post.take(A)) == {"t3": "crowded"}
    desk.router.handle(ENGINE, report("e1"))
    assert desk.granted() == {"t1": "e1", "t2": "e1"}


def test_request_that_waits_beyond_max_wait_is_refused_as_overdue() -> None:
    desk = Desk(max_wait_s=5.0)
    desk.enqueue("t1")
    desk.pass_s(4, gateways=[A])
    assert refused(desk.post.take(A)) == {}
    desk.pass_s(2, gateways=[A])
    assert refused(desk.post.take(A)) == {"t1": "overdue"}
    desk.router.handle(ENGINE, report("e1"))
    assert desk.granted() == {}


def test_running_request_is_never_overdue() -> None:
    desk = Desk(max_wait_s=5.0)
    desk.router.handle(ENGINE, report("e1"))
    desk.enqueue("t1")
    desk.pass_s(60, gateways=[A], engines=1)
    assert refused(desk.post.take(A)) == {}


def test_silent_engine_gets_nothing_more() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.pass_s(6, gateways=[A])
    assert last_status(desk.post.take(A)).engines == []
    desk.enqueue("t1")
    assert desk.granted() == {}


def test_engine_that_leaves_gets_nothing_more() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.router.handle(ENGINE, EngineGone(EngineId("e1")))
    desk.enqueue("t1")
    assert desk.granted() == {}


def test_draining_engine_gets_nothing_more() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.router.handle(ENGINE, report("e1", "draining"))
    desk.enqueue("t1")
    assert desk.granted() == {}


def test_unreachable_engine_gets_nothing_until_it_reports_again() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.router.handle(A, EngineUnreachable(EngineId("e1")))
    desk.enqueue("t1")
    assert desk.granted() == {}
    desk.router.handle(ENGINE, report("e1"))
    desk.router.look_around()
    assert desk.granted() == {"t1": "e1"}


def test_dead_engine_stays_visible_with_its_reason() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.router.handle(ENGINE, report("e1", "failed"))
    desk.pass_s(30, gateways=[A])
    assert [e.state for e in last_status(desk.post.take(A)).engines] == ["failed"]
    desk.pass_s(40, gateways=[A])
    assert last_status(desk.post.take(A)).engines == []


def test_engine_that_could_not_start_stays_visible_until_another_starts() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1"))
    desk.router.handle(ENGINE, report("e2", "failed"))
    desk.pass_s(300, gateways=[A], engines=1)
    assert [e.state for e in last_status(desk.post.take(A)).engines] == ["ready", "failed"]
    desk.router.handle(ENGINE, report("e3"))
    assert [e.state for e in last_status(desk.post.take(A)).engines] == ["ready", "ready"]


def test_of_engines_that_could_not_start_the_newest_reason_stays() -> None:
    desk = Desk()
    for engine in ("e1", "e2", "e3"):
        desk.router.handle(ENGINE, report(engine, "failed"))
        desk.pass_s(30, gateways=[A])
    assert [e.engine_id for e in last_status(desk.post.take(A)).engines] == ["e3"]


def test_of_two_that_fail_by_turns_the_last_reason_stays() -> None:
    desk = Desk()
    for engine in ("e1", "e2", "e1"):
        said = msgspec.structs.replace(report(engine, "failed"), detail=f"said at {desk.clock()}")
        desk.router.handle(ENGINE, said)
        desk.pass_s(1, gateways=[A])
    desk.pass_s(30, gateways=[A])
    assert [e.engine_id for e in last_status(desk.post.take(A)).engines] == ["e1"]


def test_engine_that_holds_on_after_others_have_started_counts_as_failed_once() -> None:
    desk = Desk()
    desk.router.handle(b"e1", report("e1", "failed"))
    desk.router.handle(b"e2", report("e2"))
    desk.router.handle(b"e1", report("e1", "failed"))
    assert len([m for m in desk.post.take(b"e1") if isinstance(m, HoldOn)]) == 1
    desk.pass_s(30, gateways=[A])
    desk.router.handle(b"e2", report("e2"))
    desk.pass_s(1, gateways=[A])
    assert [e.engine_id for e in last_status(desk.post.take(A)).engines] == ["e2"]


def test_silent_gateway_frees_what_it_had() -> None:
    desk = Desk(max_running_per_engine=1)
    desk.connect(B)
    desk.router.handle(ENGINE, report("e1"))
    desk.enqueue("t1", "t2")
    desk.enqueue("t3", gateway=B)
    desk.pass_s(12, gateways=[B], engines=1)
    assert desk.granted(B) == {"t3": "e1"}


def test_forgotten_gateway_that_speaks_again_is_asked_for_everything() -> None:
    desk = Desk()
    desk.enqueue("t1")
    desk.pass_s(12)
    desk.post.take(A)
    desk.router.handle(A, Alive())
    assert desk.post.take(A) == [Introduce()]
    desk.connect(A, Resume(waiting=[enqueue("t1")]))
    desk.router.handle(ENGINE, report("e1"))
    assert desk.granted() == {"t1": "e1"}


def test_resume_rebuilds_what_waits_and_what_runs() -> None:
    desk = Desk(max_running_per_engine=1)
    running = RunningTicket(enqueue("t1"), EngineId("e1"), 3)
    desk.connect(B, Resume(waiting=[enqueue("t2")], running=[running]))
    desk.router.handle(ENGINE, report("e1"))
    assert desk.granted(B) == {}, "the engine is full with what ran before this router came"
    desk.leave("t1", gateway=B)
    assert desk.granted(B) == {"t2": "e1"}


def test_resume_after_the_engine_counts_its_running_tickets_too() -> None:
    desk = Desk(max_running_per_engine=1)
    desk.router.handle(ENGINE, report("e1"))
    running = RunningTicket(enqueue("t1"), EngineId("e1"), 0)
    desk.connect(B, Resume(running=[running]))
    desk.enqueue("t2")
    assert desk.granted() == {}


def test_second_resume_replaces_the_first() -> None:
    desk = Desk(max_running_per_engine=1)
    desk.connect(A, Resume(waiting=[enqueue("t1"), enqueue("t2")]))
    desk.connect(A, Resume(waiting=[enqueue("t2")]))
    desk.router.handle(ENGINE, report("e1"))
    assert desk.granted() == {"t2": "e1"}


def test_front_end_is_handed_on_to_who_asks() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, FrontEndOffer("c", b"pickle"))
    desk.router.handle(A, FrontEndWanted("c"))
    desk.router.handle(A, FrontEndWanted("other"))
    assert desk.post.take(A) == [FrontEndPayload("c", b"pickle")]


def test_changed_limits_let_more_run_at_once() -> None:
    desk = Desk(max_running_per_engine=1)
    desk.router.handle(ENGINE, report("e1"))
    desk.enqueue("t1", "t2")
    desk.granted()
    desk.router.configure(parse_settings(write_args(limits={"max_running_per_engine": 2})))
    assert desk.granted() == {"t2": "e1"}


def test_light_tenant_goes_to_a_full_engine_as_express() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1", max_running=4))
    for i in range(9):
        desk.router.handle(A, enqueue(f"loud{i}", "loud"))
    desk.post.take(A)
    desk.router.handle(A, enqueue("light0", "light"))
    (grant,) = (m for m in desk.post.take(A) if isinstance(m, Grant))
    assert (grant.ticket, grant.standing.is_express) == ("light0", True)
    # There is room for one beyond, and what comes free next makes good for it.
    desk.router.handle(A, enqueue("other0", "other"))
    desk.leave("loud0")
    assert desk.granted() == {}
    desk.leave("loud1")
    assert len(desk.granted()) == 1


def test_tenants_of_one_place_each_take_none_from_one_another() -> None:
    desk = Desk()
    desk.router.handle(ENGINE, report("e1", max_running=2))
    for ticket in ("a", "b", "c"):
        desk.router.handle(A, enqueue(ticket, ticket))
    assert desk.granted() == {"a": "e1", "b": "e1"}


def test_no_place_is_taken_when_the_settings_say_so() -> None:
    desk = Desk(preempts=False)
    desk.router.handle(ENGINE, report("e1", max_running=4))
    for i in range(9):
        desk.router.handle(A, enqueue(f"loud{i}", "loud"))
    desk.post.take(A)
    desk.router.handle(A, enqueue("light0", "light"))
    assert desk.granted() == {}


SMALL, LARGE = ModelName("small"), ModelName("large")


def make_domain() -> tuple[Router, FakeMailbox]:
    """A router of two models: a token of the large one counts for four of the small one's."""
    models = [
        write_model(SMALL, domain="shared"),
        write_model(LARGE, domain="shared", cost_factor=4.0),
        write_model("alone"),
    ]
    settings = parse_settings(write_args(*models, fairness={"predicts_lengths": False}))
    post = FakeMailbox()
    router = Router(ModelName("shared"), settings, post, FakeClock())
    router.handle(A, Resume(model=SMALL))
    router.handle(B, Resume(model=LARGE))
    post.take(A), post.take(B)
    return router, post


def test_each_model_of_a_domain_goes_to_its_own_engines() -> None:
    router, post = make_domain()
    router.handle(ENGINE, report("s1", max_running=1, model=SMALL))
    router.handle(B, enqueue("large-1"))
    router.handle(A, enqueue("small-1"))
    router.handle(A, enqueue("small-2"))
    assert granted(post.take(A)) == {"small-1": "s1"}
    assert granted(post.take(B)) == {}
    router.handle(b"engine-2", report("l1", max_running=1, model=LARGE))
    assert granted(post.take(B)) == {"large-1": "l1"}
    router.look_around()
    small, large = last_status(post.take(A)), last_status(post.take(B))
    assert [(e.engine_id, small.waiting) for e in small.engines] == [("s1", 1)]
    assert [(e.engine_id, large.waiting) for e in large.engines] == [("l1", 0)]
    assert (small.config_id, large.config_id) == ("csmall", "clarge")


def test_what_a_tenant_gets_from_one_model_counts_on_the_other() -> None:
    router, post = make_domain()
    for i in range(3):
        router.handle(A, enqueue(f"a{i}", "team-a"))
        router.handle(A, enqueue(f"b{i}", "team-b"))
    # Team a has got 5 * 4 prompt tokens of the large model; team b nothing yet.
    router.handle(b"engine-2", report("l1", max_running=1, model=LARGE))
    router.handle(B, enqueue("large-a", "team-a"))
    assert granted(post.take(B)) == {"large-a": "l1"}
    router.handle(ENGINE, report("s1", max_running=4, model=SMALL))
    assert list(granted(post.take(A))) == ["b0", "b1", "b2", "a0"]


def test_domain_of_one_model_counts_its_own_tokens() -> None:
    settings = parse_settings(write_args(write_model("alone", cost_factor=9.0)))
    assert cost_factors_of(settings, ModelName("alone")) == {}
