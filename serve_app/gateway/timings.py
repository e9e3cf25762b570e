"""Where the time to a request's first token went: what "why was I slow" says.

Everything here is a difference of two readings of one process's monotonic clock. Routers and
engines say how long they took, never when, so clocks of different machines do not meet. What they
say is part of a span that the gateway measures itself; the rest of it is the way there and back.

Invariants (each a property test of that name):

1. parts_add_up: to the time to the first token, whatever is said and lost on the way.
2. no_part_is_negative.
3. first_token_fixes_the_rest: later only the number of moves changes, and which engine it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.messages import EngineId, EngineTimes, Grant


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time to the first token went, so far where that has not come. In seconds.

    Attributes:
        gateway_s: From the request's arrival until it is sent to the router: key, body, a sleeping
            model's word how it is read, where that is not known, adapter's version, chat template,
            tokenizer, the ledger's consent.
        ledger_s: What of that was waiting for the ledger.
        queue_s: Waiting at the router for its turn and for room.
        router_s: The way to the router and back, and what the router itself takes.
        adapter_load_s: Waiting, its turn come, for its adapter, at the router or in the engine.
        engine_s: From the engine's being told until the first token is here, without the above.
        engine_queue_s: What of that was waiting in the engine for a place in its batch.
        has_been_sent: Whether it has come as far as the router.
        has_first_token: Whether the first token has come.
        moves: Engines that it has lost and gone on without.
        engine_id: The engine that had it last; empty when none had.
    """

    gateway_s: float
    ledger_s: float = 0.0
    queue_s: float = 0.0
    router_s: float = 0.0
    adapter_load_s: float = 0.0
    engine_s: float = 0.0
    engine_queue_s: float = 0.0
    has_been_sent: bool = False
    has_first_token: bool = False
    moves: int = 0
    engine_id: str = ""

    @property
    def ttft_s(self) -> float:
        """From the request's arrival to its first token here, or as far as it came."""
        return self.gateway_s + self.queue_s + self.router_s + self.adapter_load_s + self.engine_s


@dataclass(slots=True)
class Run:
    """One engine's part in a generation, by this process's clock."""

    engine_id: EngineId
    from_s: float
    first_s: float | None = None
    """When its first token came."""
    times: EngineTimes | None = None
    """What the engine says of how it began."""
    to_s: float | None = None
    """When the engine was lost; None when it was not."""


class TicketClock:
    """Times one generation from its being sent to the router.

    Args:
        now_s: The monotonic clock, as in all methods.
    """

    def __init__(self, now_s: float) -> None:
        self.sent_s = now_s
        self.first_s: float | None = None
        """When its first token came."""
        self.runs: list[Run] = []
        self._since_s = now_s
        self._queue_s = 0.0
        self._router_s = 0.0
        self._adapter_load_s = 0.0
        self._engine_s = 0.0
        self._engine_queue_s = 0.0

    def grant(self, grant: Grant, now_s: float) -> None:
        """An engine is to have it."""
        if self.first_s is None:
            self._note_wait(grant.queue_s, grant.adapter_load_s, now_s)
        self.runs.append(Run(grant.engine_id, now_s))

    def lose_engine(self, now_s: float) -> None:
        """Its engine is lost; it waits again."""
        self.runs[-1].to_s = now_s
        if self.first_s is None:
            self._engine_s += self._pass(now_s)

    def hear(self, times: EngineTimes | None, now_s: float) -> None:
        """A token has come; `times` are what the engine says of how it began."""
        run = self.runs[-1]
        if run.first_s is None:
            run.first_s, run.times = now_s, times
        if self.first_s is not None:
            return
        self.first_s = now_s
        passed_s = self._pass(now_s)
        load_s = min(times.adapter_load_s, passed_s) if times is not None else 0.0
        self._adapter_load_s += load_s
        self._engine_s += passed_s - load_s
        if times is not None:
            self._engine_queue_s = min(times.queue_s, passed_s - load_s)

    def timings(self, started_s: float, ledger_s: float, now_s: float) -> Timings:
        """Returns where the time went; what is open belongs to where the request is now.

        Args:
            started_s: When the request arrived.
            ledger_s: How long it waited for the ledger.
            now_s: The monotonic clock.
        """
        open_s = max(0.0, now_s - self._since_s) if self.first_s is None else 0.0
        is_running = bool(self.runs) and self.runs[-1].to_s is None
        return Timings(
            gateway_s=max(0.0, self.sent_s - started_s),
            ledger_s=ledger_s,
            queue_s=self._queue_s + (0.0 if is_running else open_s),
            router_s=self._router_s,
            adapter_load_s=self._adapter_load_s,
            engine_s=self._engine_s + (open_s if is_running else 0.0),
            engine_queue_s=self._engine_queue_s,
            has_been_sent=True,
            has_first_token=self.first_s is not None,
            moves=self.moves,
            engine_id=self.runs[-1].engine_id if self.runs else "",
        )

    @property
    def moves(self) -> int:
        """Engines that it has lost and gone on without."""
        return max(0, len(self.runs) - 1)

    def _note_wait(self, queue_s: float, adapter_load_s: float, now_s: float) -> None:
        passed_s = self._pass(now_s)
        # Clocks of two machines do not run at the same speed to the last microsecond.
        load_s = min(max(adapter_load_s, 0.0), passed_s)
        queue_s = min(max(queue_s, 0.0), passed_s - load_s)
        self._adapter_load_s += load_s
        self._queue_s += queue_s
        self._router_s += passed_s - load_s - queue_s

    def _pass(self, now_s: float) -> float:
        passed_s, self._since_s = max(0.0, now_s - self._since_s), now_s
        return passed_s


class RequestClock:
    """Times one HTTP request. Of several generations the one counts that speaks first.

    Args:
        now_s: The monotonic clock, as in all methods.
    """

    def __init__(self, now_s: float) -> None:
        self.started_s = now_s
        self.ledger_s = 0.0
        """Spent waiting for the ledger before anything was sent to the router."""
        self.ledger_spans: list[tuple[float, float]] = []
        """When that was."""
        self.ended_s: float | None = None
        self._tickets: list[TicketClock] = []
        self._first: TicketClock | None = None

    def note_ledger(self, from_s: float, to_s: float) -> None:
        """The ledger was waited for."""
        if not self._tickets:
            self.ledger_s += max(0.0, to_s - from_s)
            self.ledger_spans.append((from_s, to_s))

    def send(self, now_s: float) -> TicketClock:
        """A generation is sent to the router; returns its clock."""
        ticket = TicketClock(now_s)
        self._tickets.append(ticket)
        return ticket

    @property
    def tickets(self) -> Iterator[TicketClock]:
        """Its generations, in the order in which they were sent."""
        return iter(self._tickets)

    @property
    def first_s(self) -> float | None:
        """When the first token came."""
        return None if self._leader is None else self._leader.first_s

    @property
    def total_s(self) -> float:
        """From its arrival to its end."""
        return 0.0 if self.ended_s is None else max(0.0, self.ended_s - self.started_s)

    def end(self, now_s: float) -> None:
        """Nothing more will come of it."""
        self.ended_s = now_s

    def timings(self, now_s: float) -> Timings:
        """Returns where the time went; until `end`, as far as it is known."""
        until_s = now_s if self.ended_s is None else self.ended_s
        leader = self._leader or (self._tickets[-1] if self._tickets else None)
        if leader is None:
            return Timings(max(0.0, until_s - self.started_s), self.ledger_s)
        return leader.timings(self.started_s, self.ledger_s, until_s)

    @property
    def _leader(self) -> TicketClock | None:
        if self._first is None:
            spoken = [t for t in self._tickets if t.first_s is not None]
            self._first = min(spoken, key=lambda t: t.first_s or 0.0) if spoken else None
        return self._first
