from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.gateway.timings import RequestClock, TicketClock
from serve_app.messages import Endpoint, EngineId, EngineTimes, Grant, Standing, TicketId
from serve_app.names import TenantId

SECONDS = st.floats(0.0, 100.0)


class Step(NamedTuple):
    """What happens next, and how long after the last."""

    kind: str
    after_s: float
    said_s: tuple[float, float]
    """What the router or the engine says it took; may be more than passed here."""


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["grant", "lose", "token", "token"]),
        SECONDS,
        st.tuples(SECONDS, SECONDS),
    ),
    max_size=20,
)


def grant(queue_s: float, load_s: float, engine: str = "engine") -> Grant:
    standing = Standing(TenantId("a"), 0, 0, 0)
    endpoint = Endpoint("tcp://127.0.0.1:1", b"")
    return Grant(TicketId("t"), EngineId(engine), endpoint, standing, queue_s, load_s)


def live(steps: list[Step]) -> tuple[RequestClock, float, list[float]]:
    """Lets a request live through these steps, as far as they can follow one another.

    Returns:
        Its clock, when it is by then, and its time to the first token after each step.
    """
    clock = RequestClock(5.0)
    now_s = 6.5
    ticket = clock.send(now_s)
    runs = False
    found = []
    for step in steps:
        now_s += step.after_s
        if step.kind == "grant" and not runs:
            ticket.grant(grant(*step.said_s), now_s)
            runs = True
        elif step.kind == "lose" and runs:
            ticket.lose_engine(now_s)
            runs = False
        elif step.kind == "token" and runs:
            ticket.hear(EngineTimes(*step.said_s), now_s)
        found.append(clock.timings(now_s).ttft_s)
    return clock, now_s, found


@given(STEPS)
def test_parts_add_up(steps: list[Step]) -> None:
    clock, now_s, _ = live(steps)
    timings = clock.timings(now_s)
    until_s = now_s if clock.first_s is None else clock.first_s
    assert timings.ttft_s == pytest.approx(until_s - 5.0)
    assert timings.has_first_token == (clock.first_s is not None)
    assert timings.engine_queue_s <= timings.engine_s + 1e-9


@given(STEPS)
def test_no_part_is_negative(steps: list[Step]) -> None:
    clock, now_s, _ = live(steps)
    t = clock.timings(now_s)
    parts = (t.gateway_s, t.queue_s, t.router_s, t.adapter_load_s, t.engine_s, t.engine_queue_s)
    assert min(parts) >= 0.0


@given(STEPS, STEPS)
def test_first_token_fixes_the_rest(before: list[Step], after: list[Step]) -> None:
    clock, now_s, _ = live(before)
    if clock.first_s is None:
        return
    _, _, found = live(before + after)
    assert set(found[len(before) :]) <= {clock.timings(now_s).ttft_s}


def test_what_the_router_says_is_part_of_what_the_gateway_sees() -> None:
    clock = RequestClock(0.0)
    ticket = clock.send(0.1)
    ticket.grant(grant(2.0, 0.5), 2.8)
    ticket.hear(EngineTimes(0.25, 0.05, 0.5), 3.8)
    found = clock.timings(9.0)
    assert found.gateway_s == pytest.approx(0.1)
    assert (found.queue_s, found.adapter_load_s) == (2.0, 0.75)
    assert found.router_s == pytest.approx(0.2)
    assert found.engine_s == pytest.approx(0.75)
    assert found.engine_queue_s == 0.05
    assert found.ttft_s == pytest.approx(3.8)
    assert (found.moves, found.engine_id) == (0, "engine")


def test_engine_that_is_lost_before_the_first_token_counts_as_engine() -> None:
    ticket = TicketClock(0.0)
    ticket.grant(grant(1.0, 0.0, "first"), 1.0)
    ticket.lose_engine(4.0)
    ticket.grant(grant(0.5, 0.0, "second"), 4.5)
    ticket.hear(None, 5.0)
    found = ticket.timings(0.0, 0.0, 9.0)
    assert (found.queue_s, found.engine_s, found.moves) == (1.5, 3.5, 1)
    assert found.engine_id == "second"


def test_of_several_generations_the_first_to_speak_counts() -> None:
    clock = RequestClock(0.0)
    slow, fast = clock.send(1.0), clock.send(1.0)
    slow.grant(grant(3.0, 0.0), 4.0)
    fast.grant(grant(0.0, 0.0), 1.0)
    assert clock.timings(4.5).has_first_token is False
    fast.hear(None, 5.0)
    slow.hear(None, 6.0)
    assert clock.timings(7.0).ttft_s == 5.0
    assert clock.timings(7.0).queue_s == 0.0


def test_ledger_counts_until_something_is_sent() -> None:
    clock = RequestClock(0.0)
    clock.note_ledger(0.5, 1.0)
    clock.send(1.5)
    clock.note_ledger(3.0, 4.0)  # Of another turn.
    found = clock.timings(5.0)
    assert (found.ledger_s, found.gateway_s) == (0.5, 1.5)


def test_request_that_is_refused_knows_where_it_was() -> None:
    clock = RequestClock(0.0)
    clock.send(1.0)
    clock.end(31.0)
    found = clock.timings(99.0)
    assert (found.queue_s, found.has_first_token, clock.total_s) == (30.0, False, 31.0)
