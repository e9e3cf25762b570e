"""Keeps the book of reservations: what each lease is charged, from its grant to its settlement.

Inputs: leases, what is heard of them, `now_s` in seconds since 1970.

The rule:
  - Opening a lease charges every scope of it; closing it corrects the charge to the true count, in
    the place in time of its admission: what was not used is free again at once.
  - A lease that nobody renews for `lease_s` lapses: it is charged what was last heard of it.
  - What lapsed may be revived or settled yet; what was settled is settled once.

Invariants (each a property test of that name):

1. settles_once: what is said again, or again after a crash, is counted once.
2. leases_leak_nothing: when all leases have lapsed, nothing runs and what is counted was used.
3. state_survives: a book that is loaded from its state answers as the original does.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from serve_app.ledger_messages import LeaseId, Reserve, Usage
from serve_app.names import KeyId, ModelName, TenantId
from serve_app.policy.usage_counts import NOTHING, Account, Charge, ForwardClock, Moment

_KEEP_US = 3600 * 1_000_000
"""How long an ended lease is remembered when nobody says that it may be forgotten."""
_MEAN_WEIGHT = 0.1
"""Of the latest completion in a tenant's moving average."""


class Scope(NamedTuple):
    """Whom a limit binds: a tenant in all it does, or with one key, or on one model."""

    tenant: TenantId
    key: KeyId | None = None
    model: ModelName | None = None

    def __str__(self) -> str:
        if self.key is not None:
            return f"key {self.key!r} of tenant {self.tenant!r}"
        if self.model is not None:
            return f"tenant {self.tenant!r} on model {self.model!r}"
        return f"tenant {self.tenant!r}"


def scopes_of(tenant: TenantId, key: KeyId, model: ModelName) -> tuple[Scope, ...]:
    """Returns every scope of a request: its tenant, its key if it has one, its model."""
    by_key = (Scope(tenant, key=key),) if key else ()
    return (Scope(tenant), *by_key, Scope(tenant, model=model))


@dataclass(frozen=True)
class Lease:
    """A reservation that was granted."""

    reserve: Reserve
    charge: Charge
    at: Moment
    prompt_price: int
    """Pico-dollars a prompt token; as it was at admission, also when prices change."""
    completion_price: int

    @property
    def id(self) -> LeaseId:
        """Names it."""
        return self.reserve.lease

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Whom it is charged to."""
        return scopes_of(self.reserve.tenant, self.reserve.key, self.reserve.model)

    def cost_of(self, usage: Usage) -> Charge:
        """Returns what a count of tokens is charged."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        pico_usd = prompt * self.prompt_price + completion * self.completion_price
        return Charge(self.reserve.requests, prompt, completion, pico_usd)


@dataclass
class Running:
    """A lease that has not ended."""

    lease: Lease
    usage: Usage
    held: Charge
    """What is charged for it now: what was reserved, or more where more was used."""
    expires_us: int


@dataclass
class Ended:
    """A lease that was settled or has lapsed, kept so that it is not counted again."""

    lease: Lease
    held: Charge
    at_us: int
    is_final: bool
    """False when it lapsed: its gateway may yet say what was used."""


@dataclass
class BookState:
    """All that the book holds, in a form that can be stored."""

    clock: ForwardClock = field(default_factory=ForwardClock)
    accounts: dict[Scope, Account] = field(default_factory=dict)
    running: OrderedDict[LeaseId, Running] = field(default_factory=OrderedDict)
    """In the order in which they would lapse."""
    ended: OrderedDict[LeaseId, Ended] = field(default_factory=OrderedDict)
    """In the order of their end."""
    n_running: dict[Scope, int] = field(default_factory=dict)
    """Requests; a later turn of the same request is not another one."""
    mean_tokens: dict[tuple[TenantId, ModelName], float] = field(default_factory=dict)
    """Moving average of completion tokens."""


class LeaseBook:
    """Opens, renews and closes leases. Looks at no limit.

    Args:
        lease_s: Seconds without renewal after which a lease lapses.
    """

    def __init__(self, lease_s: float) -> None:
        self.state = BookState()
        self._lease_us = round(lease_s * 1e6)

    def open(self, lease: Lease) -> None:
        """Charges a lease and lets it run. One that is known already changes nothing."""
        if lease.id in self.state.running or lease.id in self.state.ended:
            return
        now = self.state.clock.resume(lease.at)
        self._charge(lease, lease.charge, now)
        self._add_running(lease, now)

    def renew(self, lease: LeaseId, usage: Usage | None, now_s: float) -> Running | None:
        """Keeps a lease from lapsing, and revives one that has. None: it does not run.

        Args:
            lease: Which.
            usage: What it has used so far; None if nothing is known of that.
            now_s: Seconds since 1970.
        """
        now = self.state.clock.read(now_s)
        ended = self.state.ended.get(lease)
        if ended is not None and not ended.is_final:
            del self.state.ended[lease]
            self._charge(ended.lease, ended.lease.charge.minus(ended.held), now)
            self._add_running(ended.lease, now)
        running = self.state.running.get(lease)
        if running is None:
            return None
        running.expires_us = now.us + self._lease_us
        self.state.running.move_to_end(lease)
        if usage is not None:
            self._take_progress(running, usage, now)
        return running

    def settle(self, lease: LeaseId, usage: Usage | None, now_s: float) -> Charge | None:
        """Corrects a lease's charge to the true count and returns that.

        Args:
            lease: Which.
            usage: What was used. None gives all back, as if it had never been granted.
            now_s: Seconds since 1970.

        Returns:
            None if nothing changed: it is unknown, or was settled before.
        """
        known = self.state.running.get(lease) or self.state.ended.get(lease)
        if known is None or (isinstance(known, Ended) and known.is_final):
            return None
        cost = NOTHING if usage is None else known.lease.cost_of(usage)
        self.close(lease, cost, now_s, is_final=True)
        return cost

    def expire(self, now_s: float) -> list[tuple[LeaseId, Charge]]:
        """Lets leases lapse that nobody renewed; returns them with what they are charged."""
        now = self.state.clock.read(now_s)
        overdue = takewhile(lambda r: r.expires_us <= now.us, self.state.running.values())
        lapsed = [(r.lease.id, r.lease.cost_of(r.usage)) for r in overdue]
        for lease, cost in lapsed:
            self.close(lease, cost, now_s, is_final=False)
        while self.state.ended:
            lease, ended = next(iter(self.state.ended.items()))
            if ended.at_us + _KEEP_US > now.us:
                break
            del self.state.ended[lease]
        return lapsed

    def close(self, lease: LeaseId, cost: Charge, now_s: float, *, is_final: bool) -> None:
        """Ends a lease with what it is charged. Not `is_final`: it may be settled yet."""
        now = self.state.clock.read(now_s)
        running = self.state.running.pop(lease, None)
        known = running or self.state.ended.pop(lease, None)
        if known is None:
            return
        self._charge(known.lease, cost.minus(known.held), now)
        self.state.ended[lease] = Ended(known.lease, cost, now.us, is_final)
        if is_final:
            self._learn(known.lease.reserve, cost)
        if running is not None:
            self._count_running(running.lease, -1)

    def forget(self, lease: LeaseId) -> None:
        """Drops a settled lease of which nothing more will be said."""
        ended = self.state.ended.get(lease)
        if ended is not None and ended.is_final:
            del self.state.ended[lease]

    def recover(self, now_s: float) -> None:
        """Goes on after a time in which nobody could renew: every running lease starts anew."""
        for lease in list(self.state.running):
            self.renew(lease, None, now_s)
        self.expire(now_s)

    def sweep(self, now_s: float) -> None:
        """Drops accounts that hold nothing; called now and then."""
        now = self.state.clock.read(now_s)
        accounts = self.state.accounts
        for scope, account in list(accounts.items()):
            account.pass_time(now)
            if account.is_blank:
                del accounts[scope]

    # --- what is counted --------------------------------------------------------------------

    def account(self, scope: Scope) -> Account:
        """Returns what a scope has used by now."""
        account = self.state.accounts.setdefault(scope, Account())
        account.pass_time(self.state.clock.last)
        return account

    def n_running(self, scope: Scope) -> int:
        """Returns how many requests of a scope run."""
        return self.state.n_running.get(scope, 0)

    def us_until_lapsed(self, scope: Scope, n: int) -> int:
        """Returns microseconds until `n` requests of a scope have lapsed if none is renewed."""
        for running in self.state.running.values():
            n -= running.lease.reserve.requests if scope in running.lease.scopes else 0
            if n <= 0:
                return running.expires_us - self.state.clock.last.us
        raise AssertionError("fewer run than were asked for")

    def tenant_of(self, lease: LeaseId) -> TenantId | None:
        """Returns who pays for a lease; None if it is unknown."""
        known = self.state.running.get(lease) or self.state.ended.get(lease)
        return None if known is None else known.lease.reserve.tenant

    def mean_tokens(self, tenant: TenantId, model: ModelName) -> int | None:
        """Returns the usual length of a tenant's completions, rounded up; None if unknown."""
        mean = self.state.mean_tokens.get((tenant, model))
        return None if mean is None else math.ceil(mean)

    def _charge(self, lease: Lease, charge: Charge, now: Moment) -> None:
        for scope in lease.scopes:
            self.state.accounts.setdefault(scope, Account()).add(charge, lease.at, now)

    def _add_running(self, lease: Lease, now: Moment) -> None:
        expires_us = now.us + self._lease_us
        self.state.running[lease.id] = Running(lease, Usage(), lease.charge, expires_us)
        self._count_running(lease, 1)

    def _count_running(self, lease: Lease, sign: int) -> None:
        for scope in lease.scopes:
            n = self.n_running(scope) + sign * lease.reserve.requests
            self.state.n_running[scope] = n
            if not n:
                del self.state.n_running[scope]

    def _take_progress(self, running: Running, usage: Usage, now: Moment) -> None:
        """More than was reserved is charged as soon as it is known."""
        running.usage = usage
        reserved = running.lease.charge
        most = running.lease.cost_of(
            Usage(
                max(reserved.prompt_tokens, usage.prompt_tokens),
                max(reserved.completion_tokens, usage.completion_tokens),
            )
        )
        self._charge(running.lease, most.minus(running.held), now)
        running.held = most

    def _learn(self, ask: Reserve, cost: Charge) -> None:
        if not cost.prompt_tokens or not ask.max_tokens:
            return
        length = cost.completion_tokens / len(ask.max_tokens)
        mean = self.state.mean_tokens.get((ask.tenant, ask.model), length)
        mean += _MEAN_WEIGHT * (length - mean)
        self.state.mean_tokens[ask.tenant, ask.model] = mean
