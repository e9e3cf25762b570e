"""Decides which of the requests that an engine holds starts next, and who is preempted for it.

Inputs: with each request its standing at the router; the router's counters, as they change.

The rule:
  - A tenant's counter is the router's, less what the router charged for those of its requests that
    have not started here. So it rises when one starts, and not when one is only looked at.
  - Express requests go first (`express`): the router found that a running one is to yield. Then
    preempted ones: they have paid. Then the least counter; ties go to the smaller tenant id, and
    among one tenant's requests to the oldest. Tiers take turns as in the router.
  - Preempted is the lowest tier's tenant with the greatest counter, of its requests the youngest.
    For an express request somebody yields who stands behind it, and has not yielded before; of its
    own tier, a tenant that has more than one request running.

Invariants (each a property test of that name):

1. least_counter_starts: among new requests of a tier, none of a tenant with less waits.
2. looking_costs_nothing: what is taken aside and put back leaves counters and order as they were.
3. start_is_charged_once: a request that is preempted and starts again moves no counter.
4. started_equals_router: when nothing waits, counters are the router's.
5. yields_once: no request yields to an express one twice, and none to one that stands behind it.

Source: Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, section 4.1, where the
queue is the engine's own.
"""

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serve_app.messages import Standing, TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness_options import TierFloor

_Line = tuple[int, TenantId]
"""A tier and a tenant in it."""


Rank = tuple[int, int, TenantId, int]
"""Tier, counter, tenant, order of arrival: no two requests have the same."""


@dataclass(slots=True)
class _Entry:
    ticket: TicketId
    standing: Standing
    order: int
    """Of its arrival."""
    has_started: bool = False
    has_yielded: bool = False

    @property
    def line(self) -> _Line:
        return self.standing.tier, self.standing.tenant


class EngineTurns:
    """The waiting requests of one engine, and what is known of their tenants.

    Args:
        floor: Least share of a lower tier, as in the router.
    """

    def __init__(self, floor: float = 0.1) -> None:
        self._floor = TierFloor(floor)
        self._entries: dict[TicketId, _Entry] = {}
        """All that wait or run here."""
        self._lines: dict[_Line, list[tuple[int, TicketId]]] = {}
        """New requests that wait, by order of arrival; no line is empty."""
        self._express: dict[TicketId, None] = {}
        """New requests that wait and go first."""
        self._preempted: dict[TicketId, None] = {}
        self._running: dict[TicketId, None] = {}
        self._counters: dict[TenantId, int] = {}
        """The router's, as it told them last."""
        self._not_started: dict[TenantId, int] = {}
        """Units of those that are charged for requests which have not started here."""
        self._n_here: dict[TenantId, int] = {}
        """Requests by tenant, waiting or running."""
        self._n_arrived = 0
        self._n_waiting = 0

    def __len__(self) -> int:
        return self._n_waiting

    def __iter__(self) -> Iterator[TicketId]:
        """Yields what waits in the order that holds now, without what each start will change."""
        entries = [self._entries[t] for line in self._lines.values() for _, t in line]
        entries += [self._entries[ticket] for ticket in (*self._express, *self._preempted)]
        return iter([entry.ticket for entry in sorted(entries, key=self._key_of)])

    def __contains__(self, ticket: TicketId) -> bool:
        return ticket in self._entries

    @property
    def n_tenants(self) -> int:
        """How many tenants have something here, waiting or running."""
        return len(self._n_here)

    def is_express(self, ticket: TicketId) -> bool:
        """Whether a request was sent to a full engine."""
        return self._entries[ticket].standing.is_express

    def counter_of(self, tenant: TenantId) -> int:
        """Returns the service that a tenant got, in units, without what waits here."""
        return self._counters.get(tenant, 0) - self._not_started.get(tenant, 0)

    def synchronise(self, counters: Mapping[TenantId, int]) -> None:
        """Takes the router's counters. Those of tenants with nothing here are forgotten."""
        self._counters = {
            tenant: counters.get(tenant, self._counters[tenant]) for tenant in self._n_here
        }

    # --- the life of a request ---------------------------------------------------------------

    def arrive(self, ticket: TicketId, standing: Standing) -> None:
        """Lets a request wait. Its standing is the newest word on its tenant."""
        self._n_arrived += 1
        entry = self._entries[ticket] = _Entry(ticket, standing, self._n_arrived)
        self._counters[standing.tenant] = standing.counter
        self._n_here[standing.tenant] = self._n_here.get(standing.tenant, 0) + 1
        self._shift(entry, standing.charged)
        self._line_up(entry)

    def next(self) -> TicketId | None:
        """Returns whose turn it is; None when nothing waits."""
        if self._express or self._preempted:
            first_of_all = self._express or self._preempted
            return min(first_of_all, key=lambda ticket: self._key_of(self._entries[ticket]))
        if not self._lines:
            return None
        tiers = sorted({tier for tier, _ in self._lines})
        first = self._floor.order(tiers)[0] if len(tiers) > 1 else tiers[0]
        line = min(
            (line for line in self._lines if line[0] == first),
            key=lambda line: (self.counter_of(line[1]), line[1]),
        )
        return self._lines[line][0][1]

    def take(self, ticket: TicketId) -> None:
        """Takes a waiting request aside. `start` or `put_back` follows."""
        entry = self._entries[ticket]
        self._n_waiting -= 1
        for special in (self._express, self._preempted):
            if ticket in special:
                del special[ticket]
                return
        line = self._lines[entry.line]
        del line[bisect.bisect_left(line, (entry.order, ticket))]
        if not line:
            del self._lines[entry.line]

    def put_back(self, ticket: TicketId) -> None:
        """Lets a request that was taken aside, or preempted, wait where it belongs."""
        entry = self._entries[ticket]
        if entry.has_started:
            self._running.pop(ticket, None)
            self._preempted[ticket] = None
            self._n_waiting += 1
        else:
            self._line_up(entry)

    def start(self, ticket: TicketId) -> None:
        """Counts a request that was taken aside as running, and charges it if that is new."""
        entry = self._entries[ticket]
        self._running[ticket] = None
        if not entry.has_started:
            entry.has_started = True
            self._shift(entry, -entry.standing.charged)
            self._floor.charge(entry.standing.tier, entry.standing.charged)

    def end(self, ticket: TicketId) -> None:
        """Forgets a request that is not waiting any more. Unknown ones are left in peace."""
        entry = self._entries.pop(ticket, None)
        if entry is None:
            return
        self._running.pop(ticket, None)
        tenant = entry.standing.tenant
        if not entry.has_started:
            # The router gives back what it charged; until it says so, neither side counts it.
            self._shift(entry, -entry.standing.charged)
            self._counters[tenant] -= entry.standing.charged
        self._n_here[tenant] -= 1
        if not self._n_here[tenant]:
            del self._n_here[tenant]

    # --- who yields --------------------------------------------------------------------------

    def waiting_express(self) -> list[TicketId]:
        """Returns the express requests that wait, in the order of their turns."""
        return sorted(self._express, key=lambda ticket: self._key_of(self._entries[ticket]))

    def choose_yielding(self, newcomer: TicketId) -> TicketId | None:
        """Returns the running request that gives its place to an express one; None when none can.

        Linear in what runs. `give_place` follows, if the engine can preempt it.
        """
        n_running = Counter(self._entries[ticket].standing.tenant for ticket in self._running)
        able = [t for t in self._running if self._may_yield(t, newcomer, n_running)]
        return max(able, key=self.rank_of, default=None)

    def give_place(self, ticket: TicketId) -> None:
        """Takes note that a request is preempted for an express one; `put_back` follows."""
        self._entries[ticket].has_yielded = True

    def _may_yield(
        self, ticket: TicketId, newcomer: TicketId, n_running: Mapping[TenantId, int]
    ) -> bool:
        entry = self._entries[ticket]
        (tier, counter, tenant, _), theirs = self.rank_of(ticket), self.rank_of(newcomer)
        if entry.has_yielded or entry.standing.is_express or tenant == theirs[2]:
            return False
        return tier > theirs[0] or (
            tier == theirs[0] and counter >= theirs[1] and n_running[tenant] > 1
        )

    def rank_of(self, ticket: TicketId) -> Rank:
        """Returns how a request stands at this moment; the greatest is preempted first."""
        entry = self._entries[ticket]
        standing = entry.standing
        return standing.tier, self.counter_of(standing.tenant), standing.tenant, entry.order

    def _line_up(self, entry: _Entry) -> None:
        self._n_waiting += 1
        if entry.standing.is_express:
            self._express[entry.ticket] = None
            return
        bisect.insort(self._lines.setdefault(entry.line, []), (entry.order, entry.ticket))

    def _shift(self, entry: _Entry, units: int) -> None:
        tenant = entry.standing.tenant
        left = self._not_started.get(tenant, 0) + units
        if left:
            self._not_started[tenant] = left
        else:
            self._not_started.pop(tenant, None)

    def _key_of(self, entry: _Entry) -> tuple[bool, bool, int, int, TenantId, int]:
        tier, tenant = entry.line
        is_express = entry.ticket in self._express
        return (
            not is_express,
            not entry.has_started,
            tier,
            self.counter_of(tenant),
            tenant,
            entry.order,
        )
