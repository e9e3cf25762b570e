"""Applies a cell's shares of limits (`limit_shares`) to requests and to what counts in its book.

A limit is named by whom it binds, which it is, and of which day or month, alike in all cells.
Money is counted in nano-dollars here: in pico-dollars large budgets would not fit into 64 bits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from serve_app.cell_messages import Count
from serve_app.config_limits import LimitSpec
from serve_app.ledger_messages import LeaseId, Refused, Standing
from serve_app.policy.leases import Lease, LeaseBook, Scope
from serve_app.policy.limit_kinds import BUDGETS, PICO, RATES, Budget, Rate
from serve_app.policy.limit_shares import LimitShares
from serve_app.policy.usage_counts import Moment

_NANO = 1_000
"""Pico-dollars in a unit that cells exchange."""
_RETRY_S = 2.0
"""By then the bank has been asked again, and other cells have given up what they do not need."""

Kind = Rate | Budget | None
"""Of a limit; None is that on concurrent requests."""


class Need(NamedTuple):
    """What a request takes of one limit."""

    scope: Scope
    kind: Kind
    period: int
    """Which day or month; 0 where it is neither."""
    limit: int
    amount: int
    value: float
    """The limit as people wrote it."""

    @property
    def field(self) -> str:
        """The limit, as `LimitSpec` has it."""
        return "concurrent_requests" if self.kind is None else self.kind.limit

    @property
    def name(self) -> str:
        """The limit, as all cells call it."""
        return name_of(self.scope, self.field, self.period)


def name_of(scope: Scope, field: str, period: int = 0) -> str:
    """Return what all cells call a limit."""
    return f"{field} {period} {scope.tenant} {scope.key or '-'} {scope.model or '-'}"


def list_needs(lease: Lease, limits_of: Callable[[Scope], LimitSpec]) -> Iterator[Need]:
    """Yield what a request takes of every limit that binds it."""
    for scope in lease.scopes:
        for need in _list_limits(scope, limits_of(scope), lease.at):
            amount = _amount(need.kind, lease)
            if amount:
                yield need._replace(amount=amount)


def _list_limits(scope: Scope, spec: LimitSpec, at: Moment) -> Iterator[Need]:
    """Yield the limits that a scope has, with nothing that is needed of them."""
    for rate in RATES:
        limit = getattr(spec, rate.limit)
        if limit is not None:
            yield Need(scope, rate, 0, limit, 0, limit)
    if spec.concurrent_requests is not None:
        yield Need(scope, None, 0, spec.concurrent_requests, 0, spec.concurrent_requests)
    for budget in BUDGETS:
        value = getattr(spec, budget.limit)
        if value is not None:
            limit = round(value * budget.units) // _per_unit(budget)
            yield Need(scope, budget, _period(budget, at), limit, 0, value)


def _amount(kind: Kind, lease: Lease) -> int:
    match kind:
        case None:
            return lease.reserve.requests
        case Rate():
            return kind.measure(lease.charge)
        case Budget():
            return _ceil(kind.measure(lease.charge), _per_unit(kind))


class CellLimits:
    """What this cell may count, and what does.

    Args:
        shares: What it holds.
        book: What counts here.
    """

    def __init__(self, shares: LimitShares, book: LeaseBook) -> None:
        self.shares = shares
        self._book = book
        self._known: dict[str, Need] = {}

    def take(self, needs: Sequence[Need], now_s: float) -> Need | None:
        """Take what a request needs, or nothing; return what there is too little of.

        Of several, one that the bank has no more of either.
        """
        lacks = [need for need in needs if not self._fits(need, now_s)]
        dry = next((need for need in lacks if self.shares.is_dry(need.name)), None)
        if dry is not None:
            return dry
        for need in lacks:
            self.shares.want(need.name, need.limit, need.amount)
        if lacks:
            return lacks[0]
        for need in needs:
            self.shares.take(need.name, need.limit, need.amount)
        return None

    def refuse(self, lease: LeaseId, lack: Need, standing: Standing) -> Refused:
        """Return what a request is told that this cell may not count."""
        units = _NANO if lack.field.startswith("usd") else 1
        factor = units / PICO if units > 1 else 1
        used = self._used(lack) + self.shares.elsewhere(lack.name)
        return Refused(
            lease,
            lack.field,
            str(lack.scope),
            lack.value,
            used * factor,
            lack.amount * factor,
            _RETRY_S,
            standing,
            may_come=not self.shares.is_dry(lack.name),
        )

    def elsewhere(self, scope: Scope, field: str) -> int:
        """Return what other cells hold of a limit a minute."""
        return self.shares.elsewhere(name_of(scope, field))

    def recall(self, limits_of: Callable[[Scope], LimitSpec]) -> None:
        """Take note of what counts in the book already, as a ledger does that starts anew."""
        now = self._book.state.clock.last
        for scope in list(self._book.state.accounts):
            for need in _list_limits(scope, limits_of(scope), now):
                if self._used(need):
                    self._note(need)

    def give_up(self) -> list[Count]:
        """Give up what is not needed; return what the bank is to be told."""
        counts = self.shares.give_up(self._used_of)
        told = {count.name for count in counts}
        self._known = {name: need for name, need in self._known.items() if name in told}
        return counts

    def _fits(self, need: Need, now_s: float) -> bool:
        self._note(need)
        most = self.shares.most(need.name, need.limit, now_s)
        return self._used(need) + need.amount <= most

    def _note(self, need: Need) -> None:
        self._known[need.name] = need
        self.shares.note(need.name, need.limit, lasts=isinstance(need.kind, Budget))

    def _used_of(self, name: str) -> int:
        need = self._known.get(name)
        return 0 if need is None else self._used(need)

    def _used(self, need: Need) -> int:
        kind, account = need.kind, self._book.account(need.scope)
        match kind:
            case None:
                return self._book.n_running(need.scope)
            case Rate():
                return kind.measure(account.minute)
            case Budget():
                if need.period != _period(kind, self._book.state.clock.last):
                    return 0
                return _ceil(kind.measure(account.used(kind.span)), _per_unit(kind))


def _period(budget: Budget, at: Moment) -> int:
    return at.day if budget.span == "day" else at.month


def _per_unit(budget: Budget) -> int:
    return _NANO if budget.units == PICO else 1


def _ceil(amount: int, units: int) -> int:
    return -(-amount // units)
