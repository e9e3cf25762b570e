"""Says what a fleet's nodes have cost in a span of time, and what of that was idle or wasted.

Inputs: the times at which each node was up, ready and gone, its price, what it would have cost on
demand, and the tokens that tenants got, weighted by what each counts for.

The rule:
  - A node is paid for from up to gone. What it costs before it serves, and after it has stopped
    serving, is wasted. The rest is serving time.
  - Serving time is shared out to tenants by the weighted tokens that they got, up to what it could
    have produced at `tokens_per_h` a node; the rest of it is idle.

Invariants:
  1. shares_add_up: tenants' shares, idle and wasted time are what the nodes cost.
  2. more_tokens_cost_more: who got more weighted tokens bears no less.
  3. spans_add_up: what two spans that meet cost is what they cost together.

Source: our own; cloud bills count seconds from running to terminated.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.policy.fleet import Market, ZoneId


@dataclass(frozen=True)
class Stay:
    """One node, from up to gone.

    Attributes:
        zone: Where.
        market: How it was paid.
        usd_per_h: Its price.
        on_demand_usd_per_h: What it would have cost on demand; its price where nobody knows.
        up_s: Since when it was paid for.
        ready_s: Since when it served; None if it never did.
        stopped_s: When it stopped serving; None if it still does.
        gone_s: Until when it was paid for; None if it still is.
    """

    zone: ZoneId
    market: Market
    usd_per_h: float
    on_demand_usd_per_h: float
    up_s: float
    ready_s: float | None = None
    stopped_s: float | None = None
    gone_s: float | None = None


@dataclass(frozen=True)
class Spending:
    """What nodes cost in a span, in US dollars.

    Attributes:
        spot_usd: For spot nodes.
        on_demand_usd: For on-demand nodes.
        wasted_usd: Of both, while they did not serve.
        all_on_demand_usd: What the same nodes would have cost on demand.
        serving_h: Hours that nodes served.
    """

    spot_usd: float = 0.0
    on_demand_usd: float = 0.0
    wasted_usd: float = 0.0
    all_on_demand_usd: float = 0.0
    serving_h: float = 0.0

    @property
    def usd(self) -> float:
        """All of it."""
        return self.spot_usd + self.on_demand_usd

    @property
    def serving_usd(self) -> float:
        """What of it nodes cost while they served."""
        return max(0.0, self.usd - self.wasted_usd)


@dataclass(frozen=True)
class Shares:
    """Who bears what, in US dollars.

    Attributes:
        by_tenant: For the tokens that each got.
        idle_usd: For nodes that could have served more.
        wasted_usd: For nodes that did not serve.
    """

    by_tenant: Mapping[str, float]
    idle_usd: float
    wasted_usd: float


def sum_spending(stays: Iterable[Stay], first_s: float, last_s: float) -> Spending:
    """Return what nodes cost between two times."""
    spot = on_demand = wasted = all_on_demand = serving_h = 0.0
    for stay in stays:
        paid_h = _overlap_h(stay.up_s, stay.gone_s, first_s, last_s)
        served_h = 0.0
        if stay.ready_s is not None:
            end_s = stay.gone_s if stay.stopped_s is None else stay.stopped_s
            served_h = min(paid_h, _overlap_h(stay.ready_s, end_s, first_s, last_s))
        usd = paid_h * stay.usd_per_h
        spot += usd if stay.market == "spot" else 0.0
        on_demand += usd if stay.market == "on-demand" else 0.0
        wasted += (paid_h - served_h) * stay.usd_per_h
        all_on_demand += paid_h * stay.on_demand_usd_per_h
        serving_h += served_h
    return Spending(spot, on_demand, wasted, all_on_demand, serving_h)


def share_spending(
    spending: Spending, tokens: Mapping[str, float], tokens_per_h: float | None = None
) -> Shares:
    """Return who bears a span's cost.

    Args:
        spending: What the span cost.
        tokens: Weighted tokens that each tenant got in it.
        tokens_per_h: Weighted tokens that one node serves in an hour at most; None if not known,
            and then only a span without any tokens is idle.
    """
    total = sum(tokens.values())
    if total <= 0:
        return Shares({}, spending.serving_usd, spending.wasted_usd)
    able = spending.serving_h * tokens_per_h if tokens_per_h else total
    used = spending.serving_usd * min(1.0, total / able if able > 0 else 1.0)
    shares = {tenant: used * n / total for tenant, n in tokens.items()}
    return Shares(shares, spending.serving_usd - used, spending.wasted_usd)


def _overlap_h(start_s: float, end_s: float | None, first_s: float, last_s: float) -> float:
    end_s = last_s if end_s is None else min(end_s, last_s)
    return max(0.0, end_s - max(start_s, first_s)) / 3600.0
