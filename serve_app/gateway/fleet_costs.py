"""What the fleet's nodes cost, and which tenant bears how much of it, for reports of usage."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from cluster.fleet_book import FleetBook
from cluster.fleet_cost import stays_of
from cluster.policy.fleet import NodeId
from cluster.policy.spending import Stay, share_spending, sum_spending
from serve_app.config import FairnessSettings, Settings
from serve_app.config_store import state_dir_of
from serve_app.store.usage import UsageSum


class FleetCosts:
    """Reads what the fleet's controller has written down, where that is on this machine.

    Args:
        folder: The fleet's.
        fairness: What a token of each kind counts for.
        tokens_per_h: Weighted tokens that a node serves in an hour at most; None if not known.
    """

    def __init__(
        self, folder: Path, fairness: FairnessSettings, tokens_per_h: float | None = None
    ) -> None:
        self._book = FleetBook(folder)
        self._fairness = fairness
        self._tokens_per_h = tokens_per_h

    @classmethod
    def of(cls, settings: Settings) -> "FleetCosts | None":
        """Return the costs of a platform's fleet; None where it has none."""
        if settings.fleet is None:
            return None
        folder = state_dir_of(settings.store) / "fleet" / settings.fleet.name
        return cls(folder, settings.fairness, settings.fleet.tokens_per_h)

    def report(
        self, first: date, last: date, by_tenant: Iterable[UsageSum], now_s: float
    ) -> dict[str, Any] | None:
        """Return what nodes cost in some days (UTC), shared out by weighted tokens.

        Reads files, so not for the event loop. None where no controller has run here.

        Args:
            first: First day.
            last: Last day, included.
            by_tenant: Usage of these days, summed by tenant.
            now_s: Time; nothing is counted beyond it.
        """
        entries, ended = self._book.load().entries, self._book.read_ended()
        if not entries and not ended:
            return None
        first_s, last_s = _start_of(first), min(now_s, _start_of(last + timedelta(days=1)))
        stays, last_s = stays_of(entries, ended, {}), max(first_s, last_s)
        spending = sum_spending(stays.values(), first_s, last_s)
        tokens = {usage.group["tenant"]: self._weigh(usage) for usage in by_tenant}
        shares = share_spending(spending, tokens, self._tokens_per_h)
        return {
            **asdict(spending),
            "usd": spending.usd,
            "idle_usd": shares.idle_usd,
            "by_tenant": dict(shares.by_tenant),
            "by_node": _by_node(stays, first_s, last_s),
        }

    def _weigh(self, usage: UsageSum) -> float:
        """Count tokens as fair turns count them."""
        costs = self._fairness
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            costs.prompt_cost * fresh
            + costs.cached_cost * usage.cached_tokens
            + costs.output_cost * usage.completion_tokens
        )


def _by_node(
    stays: Mapping[NodeId, Stay], first_s: float, last_s: float
) -> dict[str, dict[str, Any]]:
    """Return what each node cost; in a fleet of cells each is one."""
    costs = {name: (stay, sum_spending([stay], first_s, last_s)) for name, stay in stays.items()}
    return {
        name: {
            "zone": stay.zone,
            "market": stay.market,
            "usd": spent.usd,
            "wasted_usd": spent.wasted_usd,
        }
        for name, (stay, spent) in sorted(costs.items())
        if spent.usd > 0
    }


def _start_of(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
