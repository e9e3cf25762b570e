"""Decides which waiting request is next.

Inputs: requests as they come, as `Waiting`. Time and chance play no part.

Rule: `Fcfs` gives them out in the order of their arrival, whoever they belong to. It is the
baseline; a fair order implements the same `WaitingQueue`.

Invariants (each a property test of that name):

1. every_request_leaves_once: what was pushed is popped or removed exactly once.
2. fcfs_keeps_arrival_order: pops follow pushes, whatever is removed in between.
3. length_counts_waiting: `len` is pushes minus pops minus removals.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from serve_app.messages import TicketId
from serve_app.names import TenantId


@dataclass(frozen=True)
class Waiting:
    """A request that waits for an engine."""

    ticket: TicketId
    tenant: TenantId
    prompt_tokens: int
    max_tokens: int
    lane: str = ""
    """What restricts where it may run, such as its adapter. If one request of a lane has no engine
    with room, none of that lane has."""
    model: str = ""
    """Whose cost factor applies, where one fairness domain spans several models."""


class WaitingQueue(Protocol):
    """An order over waiting requests."""

    def push(self, request: Waiting) -> None:
        """Adds a request. Its ticket must be new."""

    def pop(self) -> Waiting | None:
        """Takes out the request whose turn it is; None when nobody waits."""

    def remove(self, ticket: TicketId) -> bool:
        """Takes out one request; says whether it was waiting."""

    def __len__(self) -> int: ...


class Fcfs:
    """First come, first served."""

    def __init__(self) -> None:
        self._requests: OrderedDict[TicketId, Waiting] = OrderedDict()

    def push(self, request: Waiting) -> None:
        """Adds a request at the end."""
        assert request.ticket not in self._requests, "a ticket is pushed once"
        self._requests[request.ticket] = request

    def pop(self) -> Waiting | None:
        """Takes out the oldest request."""
        if not self._requests:
            return None
        return self._requests.popitem(last=False)[1]

    def remove(self, ticket: TicketId) -> bool:
        """Takes out one request; says whether it was waiting."""
        return self._requests.pop(ticket, None) is not None

    def __len__(self) -> int:
        return len(self._requests)
