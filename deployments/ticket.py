"""What a router knows of one request, and of one gateway that sends some."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from deployments.known_engine import Handed
from serve_app.messages import AdapterRef, EngineId, Enqueue, TicketId
from serve_app.names import ModelName, TenantId
from serve_app.policy.prefixes import split_marks

_NOT_SAID = ModelName("")


@dataclass
class Gateway:
    """One connection of a gateway, as the router knows it."""

    heard_s: float
    model: ModelName = _NOT_SAID
    """Which of the router's models this connection is for; empty until it says so."""
    tickets: set[TicketId] = field(default_factory=set)


@dataclass
class Ticket:
    """One request, from its arrival to its end."""

    gateway: bytes
    tenant: TenantId
    engine_id: EngineId | None
    """None while it waits."""
    since_s: float
    model: ModelName
    adapter: AdapterRef | None = None
    marks: Sequence[int] = ()
    """Of its prompt (`policy.prefixes`)."""
    completion_tokens: int = 0
    """Those charged so far."""
    lost_tokens: int = 0
    """Of those, how many died with an engine and will be produced again."""
    strikes: int = 0
    """Engines in a row that died under it and gave it no token."""
    has_run: bool = False
    """Whether an engine has had it: it has paid for its prompt."""
    paid_tokens: int | None = None
    """Tokens that it had when it came from another cell, where its prompt was paid, too."""
    prompt_tokens: int = 0
    max_tokens: int = 0
    dialect: str = ""
    """Of its tokens; empty is any engine's of its model."""

    def take(self, enqueue: Enqueue) -> None:
        """Learns what its gateway says of its prompt; a dead router's state does not say it."""
        self.prompt_tokens, self.max_tokens = enqueue.prompt_tokens, enqueue.max_tokens
        self.marks, self.dialect = split_marks(enqueue.marks), enqueue.dialect

    @property
    def handed(self) -> Handed:
        """As an engine's bookkeeping has it."""
        return Handed(self.tenant, None if self.adapter is None else self.adapter.id, self.marks)

    def count(self, n_tokens: int) -> int:
        """Takes note of produced tokens; returns how many of them were not charged before."""
        again = min(self.lost_tokens, n_tokens)
        self.lost_tokens -= again
        self.completion_tokens += n_tokens - again
        return n_tokens - again
