from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given

from serve_app.gateway.timings import RequestClock
from serve_app.gateway.trace_plan import Span, plan_spans
from tests.property.test_timings import STEPS, Step, grant, live

_SLACK_S = 1e-9


def plan(steps: list[Step]) -> tuple[RequestClock, list[Span]]:
    clock, now_s, _ = live(steps)
    clock.end(now_s + 1.0)
    return clock, plan_spans(clock)


def check_within(spans: Iterable[Span], start_s: float, end_s: float) -> None:
    for span in spans:
        assert start_s - _SLACK_S <= span.start_s <= span.end_s <= end_s + _SLACK_S, span
        check_within(span.children, span.start_s, span.end_s)


@given(STEPS)
def test_every_span_lies_within_its_parent(steps: list[Step]) -> None:
    clock, spans = plan(steps)
    assert clock.ended_s is not None
    check_within(spans, clock.started_s, clock.ended_s)


@given(STEPS)
def test_spans_of_one_generation_follow_one_another(steps: list[Step]) -> None:
    _, spans = plan(steps)
    for before, after in pairwise(spans):
        assert before.end_s <= after.start_s + _SLACK_S
    for span in spans:
        for before, after in pairwise(span.children):
            assert before.end_s <= after.start_s + _SLACK_S


def test_request_that_moves_has_a_span_of_the_way() -> None:
    clock = RequestClock(0.0)
    clock.note_ledger(0.1, 0.2)
    ticket = clock.send(1.0)
    ticket.grant(grant(0.5, 0.0, "one"), 2.0)
    ticket.hear(None, 3.0)
    ticket.lose_engine(4.0)
    ticket.grant(grant(0.5, 0.0, "two"), 5.0)
    ticket.hear(None, 6.0)
    clock.end(8.0)
    spans = plan_spans(clock)
    assert [(s.name, s.start_s, s.end_s) for s in spans] == [
        ("ledger", 0.1, 0.2),
        ("router", 1.0, 2.0),
        ("engine", 2.0, 4.0),
        ("migration", 4.0, 5.0),
        ("engine", 5.0, 8.0),
    ]
    assert [child.name for child in spans[4].children] == ["prefill", "decode"]
    assert spans[3].attributes == {"arriero.engine.from": "one", "arriero.engine.to": "two"}
