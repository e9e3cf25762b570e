"""What a fair queue writes down of its decisions, and an offline check of it.

`replay` is written apart from the queue, with plain loops over all tenants, so that it is also the
reference model in tests. It understands every option, as it is told what was charged and only
recomputes what follows.

What it checks:

1. A ticket arrives, is admitted, is charged and ends in that order, and ends once.
2. The tenant admitted had the least counter of those who waited in a lane that was not refused, or
   was within the quantum of it; among equals the smallest id.
3. A lift leads to the level that the rule says, and never down.
4. What a ticket has paid when it ends is the price of its tokens, however often it was resumed.
5. Where several tiers waited, they were asked in the order of the rule (`fairness_audit_tiers`).
6. Counters of two tenants that wait without a break differ by no more than the bound.
7. A load of an adapter is on its tenant's counter, from where the tenant comes back if it is away.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from serve_app.policy.fairness_audit_tiers import TierCheck
from serve_app.policy.fairness_ticket import SavedTicket, Snapshot


class Opened(msgspec.Struct, frozen=True, tag=True):
    """First record of a log."""

    quantum_units: int = 0
    burst_units: int = 0
    bound_units: int | None = None
    """Greatest difference of counters that is allowed; None does not check it."""
    max_credit_units: int | None = None
    now_s: float = 0.0
    floor: float = 0.1
    """Least share of a lower tier."""
    cap_units: float = float("inf")
    """Service that a tier can be owed."""


class Arrived(msgspec.Struct, frozen=True, tag=True):
    """A request began to wait."""

    ticket: str
    tenant: str
    tier: int
    lane: str
    prompt_tokens: int
    rates: tuple[int, int, int]
    """Units per computed prompt token, cached prompt token, output token."""
    counter: int
    """The tenant's, after a lift if there was one."""
    now_s: float


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """A request was handed to an engine."""

    ticket: str
    engine_id: str
    """Empty for one that ran already when this router began; it had its turn before."""
    cached_tokens: int
    predicted_tokens: int
    refused_lanes: list[str]
    """Lanes that were asked first and had no room."""
    counter: int
    """The tenant's, after the charge."""
    is_resumed: bool
    now_s: float
    asked: list[tuple[int, float]] = []
    """Where several tiers waited: in which order they were asked, and what each was owed."""


class Charged(msgspec.Struct, frozen=True, tag=True):
    """Output tokens were counted."""

    ticket: str
    n_tokens: int
    counter: int


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """A tenant pays for what is no request's here: an adapter's load, or service elsewhere."""

    tenant: str
    tier: int
    units: int
    counter: int
    """The tenant's, after the charge."""


class Requeued(msgspec.Struct, frozen=True, tag=True):
    """A running request lost its engine and waits to be resumed."""

    ticket: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A ticket is gone."""

    ticket: str
    cached_tokens: int
    is_computed: bool
    """False if nothing is owed for the prompt."""
    counter: int


class Restored(msgspec.Struct, frozen=True, tag=True):
    """All that holds at this point: what a log that does not begin at the beginning goes on from.

    It is also what a router that succeeds a dead one goes on from.
    """

    snapshot: Snapshot


class Forgotten(msgspec.Struct, frozen=True, tag=True):
    """Tenants that were expected after a router's death and are not back count as gone."""


Record = Opened | Arrived | Admitted | Charged | Loaded | Requeued | Ended | Restored | Forgotten


@dataclass
class _Entry:
    """A ticket as the log tells it."""

    arrived: Arrived
    order: int
    state: str = "waiting"
    cached: int = 0
    predicted: int = 0
    produced: int = 0
    paid: int = 0

    def price(self, *, is_computed: bool = True) -> int:
        prompt, cached, output = self.arrived.rates
        computed = max(self.arrived.prompt_tokens - self.cached, min(self.arrived.prompt_tokens, 1))
        rest = self.arrived.prompt_tokens - computed
        owed = computed * prompt + rest * cached if is_computed else 0
        return owed + output * max(self.produced, self.predicted)


@dataclass
class _Replay:
    opened: Opened = field(default_factory=Opened)
    counters: dict[tuple[int, str], int] = field(default_factory=dict)
    last_leaver: dict[int, tuple[int, str]] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)
    expected: set[tuple[int, str]] = field(default_factory=set)
    entries: dict[str, _Entry] = field(default_factory=dict)
    n_arrived: int = 0
    tiers: TierCheck = field(default_factory=lambda: TierCheck(0.0, float("inf")))
    violations: list[str] = field(default_factory=list)
    where: str = ""

    def complain(self, text: str) -> None:
        self.violations.append(f"{self.where}: {text}")

    def waiting(self, tier: int) -> dict[tuple[int, str], list[_Entry]]:
        found: dict[tuple[int, str], list[_Entry]] = {}
        for entry in self.entries.values():
            if entry.state == "waiting" and entry.arrived.tier == tier:
                found.setdefault((tier, entry.arrived.tenant), []).append(entry)
        return found

    def level(self, tier: int) -> int:
        credit = self.opened.max_credit_units
        base = 0 if credit is None else max(self.reached.get(tier, 0) - credit, 0)
        waiting = {*self.waiting(tier), *(key for key in self.expected if key[0] == tier)}
        if waiting:
            least = min(waiting, key=lambda key: (self.counters[key], key))
            return max(base, self.counters[least] - self.ahead(least))
        if tier in self.last_leaver:
            base = max(base, self.counters[self.last_leaver[tier]])
        running = {
            (tier, e.arrived.tenant)
            for e in self.entries.values()
            if e.state != "waiting" and e.arrived.tier == tier
        }
        return max(base, min((self.counters[key] for key in running), default=0))

    def ahead(self, key: tuple[int, str]) -> int:
        """Units that a tenant has paid for tokens which are not produced yet."""
        return sum(
            entry.arrived.rates[2] * max(entry.predicted - entry.produced, 0)
            for entry in self.entries.values()
            if entry.state != "waiting" and (entry.arrived.tier, entry.arrived.tenant) == key
        )

    def find(self, ticket: str, *states: str) -> _Entry | None:
        entry = self.entries.get(ticket)
        if entry is None or entry.state not in states:
            is_what = "unknown or has ended" if entry is None else entry.state
            self.complain(f"ticket {ticket} is {is_what}, not {' or '.join(states)}")
            return None
        return entry

    def pay(self, entry: _Entry, price: int, counter: int) -> None:
        key = (entry.arrived.tier, entry.arrived.tenant)
        self.counters[key] += price - entry.paid
        self.tiers.charge(key[0], price - entry.paid)
        entry.paid = price
        if self.counters[key] != counter:
            self.complain(f"counter of {key[1]} is {counter}, expected {self.counters[key]}")
            self.counters[key] = counter


def replay(records: Iterable[Record]) -> list[str]:
    """Returns what is wrong in a log, one line a violation, in the order of the log."""
    state = _Replay()
    for n, record in enumerate(records):
        state.where = f"record {n} ({type(record).__name__})"
        match record:
            case Opened():
                state.opened = record
                state.tiers = TierCheck(record.floor, record.cap_units)
            case Arrived():
                _check_arrival(state, record)
            case Admitted():
                _check_admission(state, record)
            case Charged():
                if (entry := state.find(record.ticket, "running")) is not None:
                    entry.produced += record.n_tokens
                    state.pay(entry, entry.price(), record.counter)
            case Loaded():
                _check_load(state, record)
            case Requeued():
                if (entry := state.find(record.ticket, "running")) is not None:
                    entry.state = "resumed"
            case Ended():
                _check_end(state, record)
            case Restored():
                _restore(state, record.snapshot)
            case Forgotten():
                state.expected.clear()
        if isinstance(record, Admitted | Charged):
            _check_bound(state, record.ticket)
    return state.violations


def _restore(state: _Replay, snapshot: Snapshot) -> None:
    state.counters, state.entries, state.last_leaver = {}, {}, {}
    state.reached = {index: tier.reached for index, tier in snapshot.tiers.items()}
    state.tiers.restore(*snapshot.tier_credit)
    state.expected = {(i, tenant) for i, t in snapshot.tiers.items() for tenant in t.expected}
    state.n_arrived = snapshot.order
    for index, tier in snapshot.tiers.items():
        state.counters |= {(index, tenant): units for tenant, units in tier.counters.items()}
        if tier.last_leaver is not None:
            state.last_leaver[index] = index, tier.last_leaver
    for saved in snapshot.tickets:
        state.entries[saved.ticket] = _load_entry(saved, state.counters[saved.tier, saved.tenant])


def _load_entry(saved: SavedTicket, counter: int) -> _Entry:
    arrived = Arrived(
        saved.ticket,
        saved.tenant,
        saved.tier,
        saved.lane,
        saved.prompt_tokens,
        saved.rates,
        counter,
        now_s=0.0,
    )
    return _Entry(
        arrived,
        saved.order,
        saved.state,
        saved.cached_tokens,
        saved.predicted_tokens,
        saved.produced_tokens,
        saved.paid,
    )


def _check_arrival(state: _Replay, record: Arrived) -> None:
    if record.ticket in state.entries:
        state.complain(f"ticket {record.ticket} arrived before")
        return
    key = (record.tier, record.tenant)
    is_lifted = key not in state.waiting(record.tier) and key not in state.expected
    state.expected.discard(key)
    level = state.level(record.tier) - state.opened.burst_units + state.ahead(key)
    expected = max(state.counters.get(key, 0), level if is_lifted else 0)
    if record.counter != expected:
        state.complain(f"counter of {record.tenant} is {record.counter}, expected {expected}")
    state.counters[key] = record.counter
    state.n_arrived += 1
    state.entries[record.ticket] = _Entry(record, state.n_arrived)


def _check_admission(state: _Replay, record: Admitted) -> None:
    entry = state.find(record.ticket, "resumed" if record.is_resumed else "waiting")
    if entry is None:
        return
    key = (entry.arrived.tier, entry.arrived.tenant)
    if not record.is_resumed:
        if record.engine_id:
            _check_turn(state, entry, record)
        credit = state.opened.max_credit_units
        if credit is not None:
            floor = state.reached.get(key[0], 0) - credit
            state.counters[key] = max(state.counters[key], floor)
        state.reached[key[0]] = max(state.reached.get(key[0], 0), state.counters[key])
        state.last_leaver[key[0]] = key
        entry.cached, entry.predicted = record.cached_tokens, record.predicted_tokens
    entry.state = "running"
    state.pay(entry, entry.price(), record.counter)


def _check_turn(state: _Replay, entry: _Entry, record: Admitted) -> None:
    tier, tenant = entry.arrived.tier, entry.arrived.tenant
    waiting = {other.arrived.tier for other in state.entries.values() if other.state == "waiting"}
    for text in state.tiers.check(tier, record.asked, waiting):
        state.complain(text)
    if entry.arrived.lane in record.refused_lanes:
        state.complain(f"lane {entry.arrived.lane!r} had no room")
    rivals = [
        (state.counters[key], key[1], other.order, other.arrived.ticket)
        for key, others in state.waiting(tier).items()
        for other in others
        if other.arrived.lane not in record.refused_lanes
    ]
    least = min(rivals, default=None)
    if least is None:
        return
    if state.opened.quantum_units:
        ahead = state.counters[tier, tenant] - least[0]
        if ahead > state.opened.quantum_units:
            state.complain(f"{tenant} was {ahead} units ahead of {least[1]}, beyond the quantum")
    elif least[3] != record.ticket:
        state.complain(f"{record.ticket} of {tenant} was admitted before {least[3]} of {least[1]}")


def _check_load(state: _Replay, record: Loaded) -> None:
    key = (record.tier, record.tenant)
    owners = {(entry.arrived.tier, entry.arrived.tenant) for entry in state.entries.values()}
    is_away = key not in owners and key not in state.expected
    level = state.level(record.tier) - state.opened.burst_units if is_away else 0
    expected = max(state.counters.get(key, 0), level) + record.units
    if record.counter != expected:
        state.complain(f"counter of {record.tenant} is {record.counter}, expected {expected}")
    state.counters[key] = record.counter
    state.tiers.charge(record.tier, record.units)


def _check_end(state: _Replay, record: Ended) -> None:
    entry = state.find(record.ticket, "waiting", "running", "resumed")
    if entry is None:
        return
    key = (entry.arrived.tier, entry.arrived.tenant)
    if entry.state == "waiting":
        state.last_leaver[key[0]] = key
        if record.counter != state.counters[key]:
            state.complain(f"{key[1]} was charged for a request that only waited")
            state.counters[key] = record.counter
    else:
        entry.predicted, entry.cached = 0, record.cached_tokens
        state.pay(entry, entry.price(is_computed=record.is_computed), record.counter)
    del state.entries[record.ticket]


def _check_bound(state: _Replay, ticket: str) -> None:
    bound = state.opened.bound_units
    if bound is None:
        return
    tier = state.entries[ticket].arrived.tier if ticket in state.entries else 0
    counters = [state.counters[key] for key in state.waiting(tier)]
    if counters and max(counters) - min(counters) > bound:
        gap = max(counters) - min(counters)
        state.complain(f"counters of waiting tenants differ by {gap}, bound {bound}")
