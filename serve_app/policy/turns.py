"""What a policy that decides whose turn it is has to do, and what the router tells it.

The life of a ticket, and who calls what when (all by the router, in the order of events):

  arrive ─→ waiting ──admit──→ running ──charge, charge, …──→ finish
               │                  │ └─requeue─→ resumed ──admit──→ running
               └──────abort───────┴──────────────────────────────→ gone

A policy sees neither clock nor network; it is told `now_s` and asks `place` where a request could
run at this moment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serve_app.messages import EngineId, TicketId
from serve_app.policy.admission import Refusal
from serve_app.policy.queueing import Waiting


@dataclass(frozen=True, slots=True)
class Fit:
    """An engine on which a request could start now."""

    engine_id: EngineId
    cached_tokens: int = 0
    """Prompt tokens whose KV blocks that engine is believed to have."""
    is_loaded: bool = True
    """Whether that engine has the request's adapter, or it needs none."""
    is_express: bool = False
    """Whether the engine is full, and a running request has to yield its place."""


@dataclass(frozen=True, slots=True)
class Later:
    """An engine that may run it has too little room, and will have enough when others end."""


Place = Callable[[Waiting], Fit | Later | None]
"""Says where a request could start now; None when no engine that may run it takes any.

It may be asked about several requests before one is admitted, so it must not take the room.
"""


@dataclass(frozen=True, slots=True)
class Admission:
    """Whose turn it was, where, and why."""

    request: Waiting
    fit: Fit
    reason: str
    is_resumed: bool = False
    """Whether it had been admitted before, and so cost nothing now."""
    tier: int = 0
    counter: int = 0
    """Its tenant's, after the charge."""
    charged: int = 0
    """What the request has paid."""


class TurnOrder(Protocol):
    """Decides which waiting request runs next."""

    def arrive(self, request: Waiting, now_s: float) -> Refusal | None:
        """Adds a request with a new ticket. A refusal means that it was not added."""

    def admit(self, place: Place, now_s: float) -> Admission | None:
        """Takes out and charges the next request that fits; None when none does.

        Called until it returns None, whenever a request has arrived or room has come free. The
        router hands over exactly what is returned.
        """

    def charge(self, ticket: TicketId, n_tokens: int) -> None:
        """Counts output tokens that a running ticket has produced since the last call."""

    def finish(self, ticket: TicketId, cached_tokens: int | None = None) -> None:
        """Ends a running ticket whose tokens have all been counted.

        Args:
            ticket: Which.
            cached_tokens: Prompt tokens that were really cached; None leaves what `Fit` said.
        """

    def abort(
        self, ticket: TicketId, cached_tokens: int | None = None, *, is_computed: bool = True
    ) -> bool:
        """Ends a ticket early, waiting or running; says whether it was known.

        Args:
            ticket: Which.
            cached_tokens: As for `finish`.
            is_computed: Whether the engine has begun on its prompt. If not, nothing is owed for it.
        """

    def requeue(self, ticket: TicketId) -> None:
        """Puts a running ticket back that has lost its engine. What it has paid stays paid."""

    def __len__(self) -> int:
        """How many wait, resumed ones included."""
