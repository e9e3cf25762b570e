"""A ticket as the fair queue keeps it, and how it and the queue are saved."""

from dataclasses import dataclass

import msgspec

from serve_app.messages import TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness_options import Rates
from serve_app.policy.fairness_tier import Account
from serve_app.policy.queueing import Waiting


@dataclass(slots=True, eq=False)
class Ticket:
    """A request from arrival to end, with what it has paid."""

    request: Waiting
    tier: int
    account: Account
    rates: Rates
    order: int
    """Of its arrival."""
    is_running: bool = False
    cached_tokens: int = 0
    predicted_tokens: int = 0
    produced_tokens: int = 0
    paid: int = 0
    """Units charged so far."""

    @property
    def ahead(self) -> int:
        """Units paid for tokens that are not produced yet."""
        return max(self.predicted_tokens - self.produced_tokens, 0) * self.rates.output

    @property
    def refundable(self) -> int:
        """Units that it may give back at most."""
        return self.paid - self.produced_tokens * self.rates.output

    def price(self, *, is_computed: bool) -> int:
        """Returns the units it costs by what is known of it now."""
        tokens = max(self.produced_tokens, self.predicted_tokens)
        prompt_tokens = self.request.prompt_tokens if is_computed else 0
        return self.rates.price(prompt_tokens, self.cached_tokens, tokens)


class SavedTicket(msgspec.Struct, frozen=True):
    """A ticket in a snapshot."""

    ticket: TicketId
    tenant: TenantId
    prompt_tokens: int
    max_tokens: int
    lane: str
    model: str
    tier: int
    rates: tuple[int, int, int]
    order: int
    state: str
    """`waiting`, `running` or `resumed`."""
    cached_tokens: int
    predicted_tokens: int
    produced_tokens: int
    paid: int


class SavedTier(msgspec.Struct, frozen=True):
    """One tier's counters in a snapshot."""

    counters: dict[TenantId, int]
    last_leaver: TenantId | None
    reached: int
    expected: list[TenantId] = []
    """Tenants whose waiting requests are not in the snapshot and will be told again."""


class Snapshot(msgspec.Struct, frozen=True):
    """A whole fair queue; what a new router continues from."""

    order: int
    tiers: dict[int, SavedTier]
    tickets: list[SavedTicket]
    lengths: dict[str, list[int]]
    """What the predictor has learned."""
    tier_credit: tuple[dict[int, float], dict[int, int]]


def save_ticket(ticket: Ticket, *, is_resumed: bool) -> SavedTicket:
    """Returns a ticket as it is saved."""
    request, rates = ticket.request, ticket.rates
    return SavedTicket(
        request.ticket,
        request.tenant,
        request.prompt_tokens,
        request.max_tokens,
        request.lane,
        request.model,
        ticket.tier,
        (rates.prompt, rates.cached, rates.output),
        ticket.order,
        "running" if ticket.is_running else "resumed" if is_resumed else "waiting",
        ticket.cached_tokens,
        ticket.predicted_tokens,
        ticket.produced_tokens,
        ticket.paid,
    )


def load_ticket(saved: SavedTicket, account: Account) -> Ticket:
    """Returns a saved ticket as the queue keeps it."""
    return Ticket(
        Waiting(
            saved.ticket,
            saved.tenant,
            saved.prompt_tokens,
            saved.max_tokens,
            saved.lane,
            saved.model,
        ),
        saved.tier,
        account,
        Rates(*saved.rates),
        saved.order,
        saved.state == "running",
        saved.cached_tokens,
        saved.predicted_tokens,
        saved.produced_tokens,
        saved.paid,
    )
