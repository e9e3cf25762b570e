"""Decides whether a request may begin under the limits of its tenant, its key and its model.

Inputs: `Reserve`, the limits of each scope, the book of leases, `now_s` in seconds since 1970.

The rule: a request is granted if no limit of any of its scopes would be exceeded by its prompt and
all that its completions may have. That much is charged to every scope, at once or not at all; when
the request ends, `leases` corrects it to the true count.

Of several limits in the way, the one named is the one that stays in the way longest; ties go to
the tenant before its key before its model, and to the order of `LimitSpec`'s fields.

Invariants (each a property test of that name):

1. never_beyond_a_limit: with max_tokens reserved, and no word from a lease that has lapsed, no
   count is ever above its limit.
2. no_false_refusal: a refusal names a limit that the request would have exceeded.
3. refusal_takes_nothing: a refused request leaves every count as it was.
4. wait_is_true: after `retry_after_s`, nobody else consuming, the same request is granted.
5. wait_is_least: two milliseconds earlier, no lease ending meanwhile, it is refused.
6. reset_is_true: after `reset_s`, nobody else consuming, all of a limit remains.

Nobody else consuming means for concurrent requests that nobody renews a lease.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

from serve_app.config_limits import LimitSpec, PriceSpec
from serve_app.ledger_messages import Granted, Meter, Progress, Refused, Reserve, Standing, Usage
from serve_app.names import KeyId, ModelName, TenantId
from serve_app.policy.cell_limits import CellLimits, list_needs
from serve_app.policy.leases import Lease, LeaseBook, Scope, scopes_of
from serve_app.policy.limit_kinds import BUDGETS, RATES, REQUEST_RATES, TOKEN_RATES, Budget, Rate
from serve_app.policy.usage_counts import NOTHING, Account, Charge, Moment


class LimitSource(Protocol):
    """Where limits and prices come from. Asked at every request."""

    def limits_of(self, scope: Scope) -> LimitSpec:
        """Returns a scope's limits; all None where it has none."""

    def price_of(self, model: ModelName, adapter: str = "") -> PriceSpec:
        """Returns what a model's tokens cost."""


class BudgetUse(NamedTuple):
    """How much of a tenant's budget is spent or reserved."""

    tenant: TenantId
    limit: str
    ratio: float


class _Obstacle(NamedTuple):
    scope: Scope
    limit: str
    value: float
    used: float
    requested: float
    wait_us: float
    """Infinite if the request never fits."""


class Limiter:
    """Holds everyone to their limits.

    Args:
        source: Where limits and prices come from.
        book: The leases, and what they are charged.
        reserves: What is set aside for a completion (`LedgerSettings.reserve`).
        cell: What may be counted here of limits that hold for several cells; None is all.
    """

    def __init__(
        self,
        source: LimitSource,
        book: LeaseBook,
        reserves: Literal["max_tokens", "predicted"] = "max_tokens",
        cell: CellLimits | None = None,
    ) -> None:
        self._source = source
        self._book = book
        self._reserves = reserves
        self._cell = cell

    def reserve(self, ask: Reserve, now_s: float) -> tuple[Granted | Refused, Lease | None]:
        """Grants or refuses a request. Asked again for the same lease, it is granted again.

        Leases that are due must have lapsed (`LeaseBook.expire`).

        Returns:
            The answer, and the lease if it is a new one.
        """
        known = self._book.renew(ask.lease, None, now_s)
        if known is not None:
            return self._grant(ask), None
        lease = self._plan(ask, self._book.state.clock.last)
        obstacle = max(self._find_obstacles(lease), key=lambda o: o.wait_us, default=None)
        if obstacle is not None:
            return self._refuse(ask, obstacle), None
        if self._cell is not None:
            needs = list(list_needs(lease, self._source.limits_of))
            lack = self._cell.take(needs, now_s)
            if lack is not None:
                standing = self._standing(lease.scopes)
                return self._cell.refuse(ask.lease, lack, standing), None
        self._book.open(lease)
        return self._grant(ask), lease

    def announce(self, progress: Progress, now_s: float) -> Lease | None:
        """Takes a running lease from its gateway; returns it if it was not known.

        Then it was granted by a ledger that left no journal. It is not refused any more.
        """
        lease = progress.reserve.lease
        if lease not in self._book.state.running and lease not in self._book.state.ended:
            fresh = self._plan(progress.reserve, self._book.state.clock.read(now_s))
            self._book.open(fresh)
        else:
            fresh = None
        self._book.renew(lease, progress.usage, now_s)
        return fresh

    def recall(self) -> None:
        """Take note for the bank of cells of what the book holds already."""
        if self._cell is not None:
            self._cell.recall(self._source.limits_of)

    def look(self, tenant: TenantId, key: KeyId, model: ModelName, now_s: float) -> Standing:
        """Returns how things stand, reserving nothing."""
        self._book.state.clock.read(now_s)
        return self._standing(scopes_of(tenant, key, model))

    def budgets(self, now_s: float) -> Iterator[BudgetUse]:
        """Yields how tenants stand that have budgets and have used some. Linear in accounts."""
        self._book.state.clock.read(now_s)
        for scope in list(self._book.state.accounts):
            if scope.key is not None or scope.model is not None:
                continue
            spec = self._source.limits_of(scope)
            for budget in BUDGETS:
                limit = getattr(spec, budget.limit)
                if limit:
                    used = budget.measure(self._book.account(scope).used(budget.span))
                    yield BudgetUse(scope.tenant, budget.limit, used / (limit * budget.units))

    # --- what a request asks for ------------------------------------------------------------

    def _plan(self, ask: Reserve, now: Moment) -> Lease:
        price = self._source.price_of(ask.model, ask.adapter)
        lease = Lease(
            ask,
            NOTHING,
            now,
            # A dollar for a million tokens is a million pico-dollars for one.
            prompt_price=round(price.usd_per_million_prompt_tokens * 1e6),
            completion_price=round(price.usd_per_million_completion_tokens * 1e6),
        )
        usage = Usage(ask.prompt_tokens, self._completion_tokens(ask))
        return replace(lease, charge=lease.cost_of(usage))

    def _completion_tokens(self, ask: Reserve) -> int:
        """What is set aside for all completions together."""
        mean = self._book.mean_tokens(ask.tenant, ask.model)
        bounds = [self._max_output_tokens(ask), mean if self._reserves == "predicted" else None]
        most = min((bound for bound in bounds if bound is not None), default=math.inf)
        return int(sum(min(tokens, most) for tokens in ask.max_tokens))

    def _max_output_tokens(self, ask: Reserve) -> int | None:
        """The least of the scopes' `max_output_tokens`."""
        scopes = scopes_of(ask.tenant, ask.key, ask.model)
        limits = [self._source.limits_of(scope).max_output_tokens for scope in scopes]
        return min((limit for limit in limits if limit is not None), default=None)

    # --- what is in its way -----------------------------------------------------------------

    def _find_obstacles(self, lease: Lease) -> Iterator[_Obstacle]:
        now = lease.at
        for scope in lease.scopes:
            spec, account = self._source.limits_of(scope), self._book.account(scope)
            for rate in RATES:
                yield from _check_rate(scope, spec, rate, account, lease.charge, now)
            yield from self._check_concurrency(scope, spec, lease.reserve)
            yield from _check_length(scope, spec, lease.reserve)
            for budget in BUDGETS:
                yield from _check_budget(scope, spec, budget, account, lease.charge, now)

    def _check_concurrency(
        self, scope: Scope, spec: LimitSpec, ask: Reserve
    ) -> Iterator[_Obstacle]:
        limit, used = spec.concurrent_requests, self._book.n_running(scope)
        if limit is not None and ask.requests and used >= limit:
            wait_us = self._book.us_until_lapsed(scope, used - limit + 1)
            yield _Obstacle(scope, "concurrent_requests", limit, used, 1, wait_us)

    # --- what is said -----------------------------------------------------------------------

    def _grant(self, ask: Reserve) -> Granted:
        standing = self._standing(scopes_of(ask.tenant, ask.key, ask.model))
        return Granted(ask.lease, standing, self._max_output_tokens(ask))

    def _refuse(self, ask: Reserve, obstacle: _Obstacle) -> Refused:
        retry_after_s = None
        if not math.isinf(obstacle.wait_us):
            # In whole milliseconds and a bit too late, so that rounding never makes it too early.
            retry_after_s = (int(obstacle.wait_us) // 1000 + 1) / 1000
        return Refused(
            ask.lease,
            obstacle.limit,
            str(obstacle.scope),
            obstacle.value,
            obstacle.used,
            obstacle.requested,
            retry_after_s,
            self._standing(scopes_of(ask.tenant, ask.key, ask.model)),
        )

    def _standing(self, scopes: tuple[Scope, ...]) -> Standing:
        return Standing(self._tightest(scopes, REQUEST_RATES), self._tightest(scopes, TOKEN_RATES))

    def _tightest(self, scopes: tuple[Scope, ...], rates: tuple[Rate, ...]) -> Meter | None:
        now = self._book.state.clock.last
        meters = [
            self._read_meter(scope, rate, limit, now)
            for scope in scopes
            for rate in rates
            if (limit := getattr(self._source.limits_of(scope), rate.limit)) is not None
        ]
        return min(meters, key=lambda meter: (meter.remaining, meter.limit), default=None)

    def _read_meter(self, scope: Scope, rate: Rate, limit: int, now: Moment) -> Meter:
        account = self._book.account(scope)
        elsewhere = 0 if self._cell is None else self._cell.elsewhere(scope, rate.limit)
        remaining = max(0, limit - rate.measure(account.minute) - elsewhere)
        return Meter(limit, remaining, account.us_until_empty(rate.measure, now) / 1e6)


def _check_rate(
    scope: Scope, spec: LimitSpec, rate: Rate, account: Account, charge: Charge, now: Moment
) -> Iterator[_Obstacle]:
    limit = getattr(spec, rate.limit)
    used, requested = rate.measure(account.minute), rate.measure(charge)
    if limit is None or not requested or used + requested <= limit:
        return
    wait_us: float = math.inf
    if requested <= limit:
        wait_us = account.us_until_free(rate.measure, used + requested - limit, now)
    yield _Obstacle(scope, rate.limit, limit, used, requested, wait_us)


def _check_length(scope: Scope, spec: LimitSpec, ask: Reserve) -> Iterator[_Obstacle]:
    limit, longest = spec.max_output_tokens, max(ask.max_tokens, default=0)
    if limit is not None and ask.is_max_tokens_given and longest > limit:
        yield _Obstacle(scope, "max_output_tokens", limit, 0, longest, math.inf)


def _check_budget(
    scope: Scope, spec: LimitSpec, budget: Budget, account: Account, charge: Charge, now: Moment
) -> Iterator[_Obstacle]:
    limit, units = getattr(spec, budget.limit), budget.units
    used, requested = budget.measure(account.used(budget.span)), budget.measure(charge)
    if limit is None or not requested or used + requested <= round(limit * units):
        return
    fits = requested <= round(limit * units)
    wait_us = now.us_until_next(budget.span) if fits else math.inf
    yield _Obstacle(scope, budget.limit, limit, used / units, requested / units, wait_us)
