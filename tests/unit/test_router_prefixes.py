"""The router and prefix caches: requests go where their prompts have been."""

import pytest

from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import EngineGone, EngineId, Grant, Leave, Resume, TicketId
from serve_app.names import ModelName, TenantId
from serve_app.policy.fairness_options import UNITS
from serve_app.policy.prefixes import mark_prompt
from tests.support.router_post import FakeClock, FakeMailbox, enqueue, report
from tests.support.settings import write_args

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A = b"gateway-a"
CACHE = 4096


class Desk:
    """A router of engines with prefix caches."""

    def __init__(self, *engines: str, room: int = 8, quantum: float = 0.0) -> None:
        self.post = FakeMailbox()
        fairness = {"locality_quantum": quantum, "predicts_lengths": False}
        settings = parse_settings(write_args(fairness=fairness))
        self.router = Router(ModelName("tiny"), settings, self.post, FakeClock())
        self.router.handle(A, Resume())
        for engine in engines:
            mail = report(engine, max_running=room, prefix_tokens=CACHE)
            self.router.handle(engine.encode(), mail)

    def send(self, ticket: str, prompt: range, tenant: str = "team-a") -> None:
        marks = mark_prompt(prompt, "")
        self.router.handle(A, enqueue(ticket, tenant, prompt_tokens=len(prompt), marks=marks))

    def end(self, ticket: str, cached_tokens: int | None = None) -> None:
        mail = Leave(TicketId(ticket), is_finished=True, cached_tokens=cached_tokens)
        self.router.handle(A, mail)

    def granted(self) -> dict[str, str]:
        mail = self.post.take(A)
        return {str(m.ticket): str(m.engine_id) for m in mail if isinstance(m, Grant)}

    def paid(self, tenant: str = "team-a") -> float:
        return self.router._queue.counters()[TenantId(tenant)] / UNITS


def test_next_turn_goes_where_the_conversation_is() -> None:
    desk = Desk("e1", "e2")
    desk.send("first", range(200))
    desk.send("other", range(1000, 1200))
    assert desk.granted() == {"first": "e1", "other": "e2"}
    desk.end("first")
    desk.send("other, next", range(1000, 1300))
    desk.send("first, next", range(300))
    assert desk.granted() == {"other, next": "e2", "first, next": "e1"}


def test_believed_prefix_is_not_charged_until_the_truth_is_known() -> None:
    desk = Desk("e1")
    desk.send("one", range(200))
    assert desk.paid() == 200
    desk.send("two", range(200))
    assert desk.paid() == 200 + 200 - 192, "192 tokens are marked"
    desk.end("two", cached_tokens=0)
    assert desk.paid() == 400


def test_dropped_request_pays_for_what_was_computed_in_truth() -> None:
    desk = Desk("e1")
    desk.send("one", range(200))
    desk.send("two", range(200))
    desk.router.handle(A, Leave(TicketId("two"), cached_tokens=64))
    assert desk.paid() == 200 + 200 - 64


def test_prefix_does_not_overload_its_engine() -> None:
    desk = Desk("e1", "e2")
    for i in range(10):
        desk.send(f"t{i}", range(200))
    places = list(desk.granted().values())
    assert 3 <= places.count("e1") <= 7


def test_engine_that_comes_back_has_nothing_cached() -> None:
    desk = Desk("e2")
    desk.send("one", range(200))
    desk.end("one")
    desk.router.handle(b"e2", EngineGone(EngineId("e2")))
    for engine in ("e1", "e2"):
        desk.router.handle(engine.encode(), report(engine, prefix_tokens=CACHE))
    desk.granted()
    desk.send("two", range(200))
    assert desk.granted() == {"two": "e1"}
    assert desk.paid() == 400


@pytest.mark.parametrize(("quantum", "first"), [(0.0, "far"), (500.0, "near")])
def test_quantum_lets_a_cached_prompt_go_first(quantum: float, first: str) -> None:
    desk = Desk("e1", room=1, quantum=quantum)
    desk.send("warm", range(192), tenant="b-team")
    desk.send("far", range(5000, 5064), tenant="a-team")
    desk.send("near", range(192), tenant="b-team")
    desk.granted()
    desk.end("warm")
    assert set(desk.granted()) == {first}
