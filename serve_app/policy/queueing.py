"""A waiting request, as every policy that orders them sees it."""

from dataclasses import dataclass

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
