"""Which spans a request's trace has: its life as it was timed, told in another form.

    request ── ledger
            ├─ router          from being sent to the router until it says which engine
            ├─ engine ── adapter load, queue, prefill, decode
            ├─ migration       from the loss of an engine until it goes on at another one
            └─ engine …

Invariants (each a property test of that name):

1. every_span_lies_within_its_parent.
2. spans_of_one_generation_follow_one_another.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from serve_app.gateway.timings import RequestClock, Run, TicketClock
from serve_app.messages import EngineTimes

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Span:
    """A span. Times are those of the gateway's monotonic clock, in seconds."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    children: tuple["Span", ...] = ()


def plan_spans(clock: RequestClock) -> list[Span]:
    """Returns the spans below the one of the whole request, which has ended."""
    assert clock.ended_s is not None, "end comes first"
    spans = [Span("ledger", from_s, to_s) for from_s, to_s in clock.ledger_spans]
    for ticket in clock.tickets:
        spans += _plan_ticket(ticket, clock.ended_s)
    return spans


def _plan_ticket(ticket: TicketClock, ended_s: float) -> Iterator[Span]:
    if not ticket.runs:
        yield Span("router", ticket.sent_s, ended_s)
        return
    yield Span("router", ticket.sent_s, ticket.runs[0].from_s)
    lost: Run | None = None
    for run in ticket.runs:
        if lost is not None and lost.to_s is not None:
            moved = {"arriero.engine.from": lost.engine_id, "arriero.engine.to": run.engine_id}
            yield Span("migration", lost.to_s, run.from_s, moved)
        yield _plan_run(run, run.to_s if run.to_s is not None else ended_s)
        lost = run


def _plan_run(run: Run, end_s: float) -> Span:
    """What an engine says it took is laid from where it was told to begin; the rest is prefill."""
    parts: list[Span] = []
    at_s = run.from_s
    begun_s = end_s if run.first_s is None else run.first_s
    said = run.times or EngineTimes()
    for name, took_s in (("adapter load", said.adapter_load_s), ("queue", said.queue_s)):
        until_s = min(at_s + took_s, begun_s)
        if until_s > at_s:
            parts.append(Span(name, at_s, until_s))
        at_s = until_s
    if run.first_s is not None:
        parts.append(Span("prefill", at_s, run.first_s))
        parts.append(Span("decode", run.first_s, end_s))
    return Span("engine", run.from_s, end_s, {"arriero.engine": run.engine_id}, tuple(parts))
