"""What a gateway believes of another cell that it is a guest of."""

import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from serve_app.config import LimitSettings
from serve_app.config_cell import CellMembership
from serve_app.engine_frames import ACCEPTED
from serve_app.gateway.engine_links import EngineLinks
from serve_app.gateway.gateway_metrics import ModelSeries
from serve_app.gateway.guest import Guest
from serve_app.gateway.peers import Peers
from serve_app.gateway.tickets import Ticket
from serve_app.messages import (
    Endpoint,
    EngineId,
    EngineLoad,
    EngineStatus,
    EngineUnreachable,
    Enqueue,
    Grant,
    Leave,
    ModelStatus,
    RouterMail,
    Standing,
    TicketId,
)
from serve_app.metrics import Metrics
from serve_app.names import ModelName, TenantId
from serve_app.router_link import RouterLink

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TINY, E1 = ModelName("tiny"), EngineId("e1")
STATUS = ModelStatus("d.f", [EngineStatus(E1, "ready", "", EngineLoad(running=1), places=4)], 0)


class Clock:
    """The monotonic clock of the modules that ask it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[RouterMail]:
    """What is said to the other cell's router, which is there."""
    mail: list[RouterMail] = []
    monkeypatch.setattr(RouterLink, "start", lambda self: None)
    monkeypatch.setattr(RouterLink, "is_connected", True)
    monkeypatch.setattr(RouterLink, "send", lambda self, each: mail.append(each))
    return mail


@pytest.fixture
def stranded() -> list[Ticket]:
    """Requests that the guest has given up."""
    return []


@pytest.fixture
async def guest(
    clock: Clock,
    sent: list[RouterMail],
    stranded: list[Ticket],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Guest]:
    monkeypatch.setenv("ARRIERO_CELLS_KEY", "a key that cells share")
    cell = CellMembership(name="east", bank="http://127.0.0.1:9", reaches_others=True)
    peers = Peers(cell, "")
    found = Guest(
        peers,
        "http://127.0.0.1:9",
        TINY,
        b"gateway",
        LimitSettings(),
        ModelSeries(Metrics(), TINY),
        lambda ref: None,
        [],
        on_stranded=stranded.append,
        wants_front_end=False,
        now_s=clock.now_s,
    )
    yield found
    found.leave()
    await peers.close()


def test_a_router_that_says_nothing_any_more_serves_nobody(guest: Guest, clock: Clock) -> None:
    seen = [guest.serves]
    guest.client._read_mail(STATUS)
    for pause_s in (0.0, 3.0, 1.0):
        clock.now_s += pause_s
        seen.append(guest.serves)
    guest.client._read_mail(STATUS)
    assert [*seen, guest.serves] == [False, True, True, False, True]
    assert guest.view().room == 3


def test_what_a_lost_router_said_is_not_believed_of_the_next(guest: Guest) -> None:
    guest.client._read_mail(STATUS)
    guest.client._resume()
    assert not guest.serves


def test_an_engine_that_never_answered_is_no_trouble_of_its_cell(
    guest: Guest, clock: Clock, sent: list[RouterMail]
) -> None:
    for wait_s in (3.0, 6.0, 12.0):
        guest.client._read_mail(STATUS)
        guest.client.engines._lose(E1)
        for part in (0.0, 0.9):
            clock.now_s += part * wait_s
            guest.client._read_mail(STATUS)
            assert not guest.serves
        clock.now_s += 0.2 * wait_s
        guest.client._read_mail(STATUS)
        assert guest.serves
    assert not [mail for mail in sent if isinstance(mail, EngineUnreachable)]


def test_a_request_whose_engine_is_out_of_reach_is_given_up_and_has_lost_nothing(
    guest: Guest, sent: list[RouterMail], stranded: list[Ticket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineLinks, "start", lambda self, grant, frames: None)
    enqueue = Enqueue(TicketId("t1"), TenantId("a"), 1.0, 0, 5, 8)
    sink: Any = SimpleNamespace(begin=lambda ticket: None)
    ticket = Ticket([], sink, enqueue, has_grammar=False)
    guest.client._read_mail(STATUS)
    guest.client.begin(ticket)
    standing = Standing(TenantId("a"), 0, 0, 0)
    guest.client._read_mail(Grant(TicketId("t1"), E1, Endpoint("tcp://127.0.0.1:9", b""), standing))
    seen = [ticket.engine_id]
    guest.client.engines._lose(E1)
    assert stranded == [ticket]
    assert guest.client.n_requests == 0
    assert [*seen, ticket.engine_id] == [E1, None]
    assert ticket.record.losses == 0
    assert [type(mail) for mail in sent] == [Enqueue, Leave]
    assert not guest.serves


def test_room_counts_what_has_gone_there_since_the_router_spoke(guest: Guest) -> None:
    guest.client._read_mail(STATUS)
    sink: Any = SimpleNamespace(begin=lambda ticket: None)
    rooms = []
    for i in range(5):
        rooms.append(guest.view().room)
        enqueue = Enqueue(TicketId(f"t{i}"), TenantId("a"), 1.0, 0, 5, 8)
        guest.client.begin(Ticket([], sink, enqueue, has_grammar=False))
    assert rooms == [3, 3, 2, 1, 0]


def test_an_engine_that_had_answered_is_reported(guest: Guest, sent: list[RouterMail]) -> None:
    guest.client._read_mail(STATUS)
    guest.client.engines._lose(E1)
    guest.client.engines._hear(E1, [zmq.Frame(ACCEPTED), zmq.Frame(b"nobody's")])
    guest.client.engines._lose(E1)
    assert sent == [EngineUnreachable(E1)]
    assert guest.serves


def test_a_guest_without_use_leaves_after_some_seconds(guest: Guest, clock: Clock) -> None:
    assert not guest.is_useless(clock.now_s + 4.0)
    assert guest.is_useless(clock.now_s + 6.0)
    guest.client._read_mail(STATUS)
    assert not guest.is_useless(clock.now_s + 6.0)
