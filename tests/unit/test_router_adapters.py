"""The router and adapters: who waits for what, and who does not."""

from typing import Any

import msgspec
import pytest

from deployments.router import Router
from deployments.router_state import Keeper
from serve_app.adapter_counts import AdapterArrivals, AdapterTally
from serve_app.config import parse_settings
from serve_app.messages import (
    AdapterRef,
    AdapterReport,
    AdaptersGone,
    Drop,
    EngineId,
    EngineLoad,
    EngineReport,
    Grant,
    Leave,
    Prepare,
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
TINY = ModelName("tiny")


class Desk:
    """A router of engines that take adapters."""

    def __init__(
        self,
        *engines: str,
        slots: int = 2,
        room: int = 4,
        keeper: Keeper | None = None,
        load_tokens: float | None = None,
    ) -> None:
        self.post, self.clock = FakeMailbox(), FakeClock()
        self.slots, self.room = slots, room
        settings = parse_settings(write_args(fairness={"adapter_load_tokens": load_tokens}))
        self.router = Router(TINY, settings, self.post, self.clock, keeper)
        self.router.handle(A, Resume(model=TINY))
        for engine in engines:
            self.report(engine)

    def report(
        self, engine: str, *in_memory: int, load: EngineLoad | None = None, **others: Any
    ) -> None:
        adapters = AdapterReport(self.slots, 8, in_memory=list(in_memory), **others)
        mail: EngineReport = report(engine, max_running=self.room, model=TINY, adapters=adapters)
        mail = msgspec.structs.replace(mail, load=load or EngineLoad())
        self.router.handle(engine.encode(), mail)

    def send(self, ticket: str, adapter_id: int | None = None, tenant: str = "team-a") -> None:
        adapter = None if adapter_id is None else make_ref(adapter_id)
        self.router.handle(A, enqueue(ticket, tenant, adapter=adapter))

    def granted(self) -> dict[str, str]:
        mail = self.post.take(A)
        return {str(m.ticket): str(m.engine_id) for m in mail if isinstance(m, Grant)}

    def paid(self, tenant: str) -> float:
        """In tokens of cost 1."""
        return self.router._queue.counters().get(TenantId(tenant), 0) / UNITS

    def dropped(self, engine: str) -> list[int]:
        mail = self.post.take(engine.encode())
        return [ref.id for m in mail if isinstance(m, Drop) for ref in m.refs]

    def prepared(self, engine: str) -> list[int]:
        return [m.ref.id for m in self.post.take(engine.encode()) if isinstance(m, Prepare)]


def make_ref(adapter_id: int) -> AdapterRef:
    return AdapterRef(adapter_id, f"tiny:a{adapter_id}", TINY, "0" * 64, "file:///a")


def test_cold_request_waits_alone_until_its_adapter_is_in_memory() -> None:
    desk = Desk("e1")
    desk.send("cold", 7)
    assert (desk.granted(), desk.prepared("e1")) == ({}, [7])
    desk.send("warm")
    assert desk.granted() == {"warm": "e1"}, "its tenant's other requests go on"
    paid = desk.router._queue.counters()[TenantId("team-a")]
    assert paid == 5 * UNITS, "and only they are charged"
    desk.report("e1", 7)
    assert desk.granted() == {"cold": "e1"}
    assert desk.prepared("e1") == [], "it was asked for once"


def test_load_is_charged_once_to_the_tenant_whose_request_caused_it() -> None:
    desk = Desk("e1", load_tokens=50.0)
    desk.send("cold", 7)
    desk.send("also cold", 7, "team-b")
    assert desk.paid("team-a") == desk.paid("team-b") == 0, "it has not come"
    desk.report("e1", 7)
    assert desk.paid("team-a") == 5 + 2 * 50
    assert desk.paid("team-b") == 5
    desk.report("e1", 7)
    desk.send("warm", 7, "team-c")
    assert desk.paid("team-a") == 5 + 2 * 50


def test_load_is_paid_by_one_who_hung_up() -> None:
    desk = Desk("e1", load_tokens=50.0)
    desk.send("cold", 7)
    desk.router.handle(A, Leave(TicketId("cold")))
    desk.report("e1", 7)
    assert desk.paid("team-a") == 2 * 50


def test_load_that_fails_costs_nothing() -> None:
    desk = Desk("e1", load_tokens=50.0)
    desk.send("bad", 7)
    desk.report("e1", failures={7: "wrong shape"})
    assert desk.paid("team-a") == 5


def test_load_costs_what_the_engine_did_not_produce() -> None:
    desk = Desk("e1")
    desk.send("cold", 7)
    tally = AdapterTally(loads=4, stall_s=2.0)
    desk.report("e1", 7, tally=tally, load=EngineLoad(tokens_per_s=60.0))
    assert desk.paid("team-a") == 5 + 2 * 30


def test_load_that_another_router_asked_for_is_not_asked_for_or_charged_again() -> None:
    desk = Desk("e1", load_tokens=50.0)
    desk.report("e1", coming=[7])
    desk.send("cold", 7)
    assert desk.prepared("e1") == []
    desk.report("e1", 7)
    assert desk.granted() == {"cold": "e1"}
    assert desk.paid("team-a") == 5


def test_load_for_a_request_that_lost_its_engine_is_free() -> None:
    desk = Desk("e1", load_tokens=50.0)
    entry = enqueue("moved", adapter=make_ref(7))
    desk.router.handle(A, Requeue(RunningTicket(entry, None, 1)))
    assert desk.prepared("e1") == [7]
    before = desk.paid("team-a")
    desk.report("e1", 7)
    assert desk.granted() == {"moved": "e1"}
    assert desk.paid("team-a") == before


def test_request_goes_where_its_adapter_is() -> None:
    desk = Desk("e1", "e2")
    desk.report("e2", 7)
    desk.send("one", 7)
    assert desk.granted() == {"one": "e2"}
    assert desk.prepared("e1") == desk.prepared("e2") == []


def test_hot_adapter_spreads_when_its_engine_has_more_than_its_part() -> None:
    desk = Desk("e1", "e2")
    desk.report("e1", 7)
    for i in range(4):
        desk.send(f"t{i}", 7)
    assert set(desk.granted().values()) == {"e1"}
    assert desk.prepared("e2") == [7]
    desk.report("e2", 7)
    desk.send("t4", 7)
    assert "e2" in desk.granted().values()


def test_request_waits_for_its_adapter_s_engine_and_brings_no_copy_to_a_free_slot() -> None:
    desk = Desk("e1", "e2", slots=2, room=8)
    desk.report("e1", 1, 2, 3, 4, 5)
    desk.report("e2", 11, 12)
    for adapter_id in (1, 2, 3, 11, 12, 4, 5):
        desk.send(f"t{adapter_id}", adapter_id)
    assert desk.granted() == dict.fromkeys(("t1", "t2", "t3"), "e1") | dict.fromkeys(
        ("t11", "t12"), "e2"
    )
    desk.router.handle(A, Leave(TicketId("t12"), is_finished=True))
    assert desk.prepared("e2") == [], "what waits has its adapter in the other's memory"
    desk.router.handle(A, Leave(TicketId("t1"), is_finished=True))
    assert desk.granted() == {"t4": "e1"}


def test_no_more_is_loaded_ahead_than_a_batch_takes_but_one_for_each_tenant() -> None:
    desk = Desk("e1", slots=2, room=8)
    for adapter_id in range(1, 6):
        desk.send(f"t{adapter_id}", adapter_id)
    assert desk.prepared("e1") == [1, 2]
    desk.send("other", 9, "team-b")
    assert desk.prepared("e1") == [9]
    desk.report("e1", 1, 2, 9)
    assert set(desk.granted()) == {"t1", "t2", "other"}
    assert desk.prepared("e1") == [3, 4], "their requests have come"


def test_adapter_that_came_and_went_unseen_is_asked_for_again() -> None:
    desk = Desk("e1")
    desk.send("cold", 7)
    assert desk.prepared("e1") == [7]
    for _ in range(4):
        desk.clock.pass_s(1.0)
        desk.report("e1")
        desk.router.look_around()
    assert desk.prepared("e1") == [7]


def test_no_more_adapters_are_in_flight_than_slots_and_one() -> None:
    desk = Desk("e1", slots=2, room=8)
    desk.report("e1", 1, 2, 3, 4)
    for adapter_id in (1, 2, 3, 4):
        desk.send(f"t{adapter_id}", adapter_id)
    assert desk.granted() == {"t1": "e1", "t2": "e1", "t3": "e1"}
    desk.router.handle(A, Leave(TicketId("t1"), is_finished=True))
    assert desk.granted() == {"t4": "e1"}


def test_adapter_behind_busy_ones_is_served_within_one_request_s_length() -> None:
    desk = Desk("e1", slots=2, room=7)
    desk.report("e1", 1, 2, 3, 4)
    running = [f"hot-{adapter_id}-{i}" for i in range(2) for adapter_id in (1, 2, 3)]
    for ticket in running:
        desk.send(ticket, int(ticket.split("-")[1]), ticket[:5])
    assert set(desk.granted()) == set(running)
    desk.send("fourth", 4, "calm")
    for turn, ended in enumerate(list(running)):
        # Whoever has an answer asks again at once, so that no adapter is ever without a request.
        again = f"{ended[:5]}-again-{turn}"
        desk.send(again, int(ended.split("-")[1]), ended[:5])
        desk.router.handle(A, Leave(TicketId(ended), is_finished=True, completion_tokens=9))
        desk.report("e1", 1, 2, 3, 4)
        if "fourth" in desk.granted():
            return
    raise AssertionError("what ran when it came has ended, and it still waits")


def test_request_whose_adapter_failed_goes_to_the_engine_which_says_why() -> None:
    desk = Desk("e1")
    desk.send("bad", 7)
    desk.report("e1", failures={7: "wrong shape"})
    assert desk.granted() == {"bad": "e1"}


def test_router_counts_how_near_adapters_are_when_requests_come() -> None:
    desk = Desk("e1")
    desk.send("away", 7)
    desk.send("coming", 7)
    desk.report("e1", 7, 8)
    desk.send("running", 7)
    desk.send("in memory", 8)
    desk.send("base")
    found = desk.router._dispatcher._placer.arrivals(TINY)
    assert found == AdapterArrivals(running=1, in_memory=1, coming=1, away=1)


def test_deleted_adapter_leaves_every_engine_when_its_last_request_has_ended() -> None:
    desk = Desk("e1", "e2")
    desk.report("e1", 7)
    desk.send("runs", 7)
    desk.send("runs too", 7)
    desk.router.handle(A, AdaptersGone([make_ref(7), make_ref(8)]))
    assert desk.dropped("e1") == desk.dropped("e2") == [8], "nobody is with that one"
    desk.router.handle(A, Leave(TicketId("runs"), is_finished=True))
    assert desk.dropped("e1") == []
    desk.router.handle(A, Leave(TicketId("runs too")))
    assert desk.dropped("e1") == desk.dropped("e2") == [7]


def test_adapter_that_is_registered_again_stays() -> None:
    desk = Desk("e1")
    desk.report("e1", 7)
    desk.send("old", 7)
    desk.router.handle(A, AdaptersGone([make_ref(7)]))
    desk.send("new", 7)
    for ticket in ("old", "new"):
        desk.router.handle(A, Leave(TicketId(ticket), is_finished=True))
    assert desk.dropped("e1") == []


def test_new_router_lets_running_requests_keep_a_deleted_adapter() -> None:
    keeper = FakeKeeper()
    desk = Desk("e1", keeper=keeper)
    desk.report("e1", 7)
    desk.send("runs", 7)
    keeper.state = msgspec.msgpack.encode(desk.router.state())
    after = Desk(keeper=keeper)
    entry = enqueue("runs", adapter=make_ref(7))
    after.router.handle(A, Resume(running=[RunningTicket(entry, EngineId("e1"), 1)], model=TINY))
    after.report("e1", 7)
    after.router.handle(A, AdaptersGone([make_ref(7)]))
    assert after.dropped("e1") == []
    after.router.handle(A, Leave(TicketId("runs"), is_finished=True, completion_tokens=2))
    assert after.dropped("e1") == [7]


def test_adapter_is_asked_for_again_where_its_engine_is_lost() -> None:
    desk = Desk("e1", "e2")
    desk.send("cold", 7)
    first, second = ("e1", "e2") if desk.prepared("e1") else ("e2", "e1")
    for _ in range(7):
        desk.clock.pass_s(1.0)
        desk.report(second)
        desk.router.look_around()
    assert desk.router._fleet.get(EngineId(first)) is None
    assert desk.prepared(second) == [7]
    desk.report(second, 7)
    desk.router.handle(A, Resume(waiting=[enqueue("cold", adapter=make_ref(7))], model=TINY))
    assert desk.granted() == {"cold": second}
