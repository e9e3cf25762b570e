"""What the fleet's nodes cost, and which tenant bears how much of it, for reports of usage."""

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from cluster.fleet_book import FleetBook
from cluster.fleet_cost import stays_of
from cluster.policy.spending import share_spending, sum_spending
from serve_app.config import FairnessSettings, Settings
from serve_app.config_store import state_dir_of
from serve_app.store.usage import UsageSum


class FleetCosts:
    """Reads what the fleet's controller has written down, where that is on this machine.

    Args:
        folder: The fleet's.
        fairness: What a token of each kind counts for.
    """

    def __init__(self, folder: Path, fairness: FairnessSettings) -> None:
        self._book = FleetBook(folder)
        self._fairness = fairness

    @classmethod
    def of(cls, settings: Settings) -> "FleetCosts | None":
        """Return the costs of a platform's fleet; None where it has none."""
        if settings.fleet is None:
            return None
        folder = state_dir_of(settings.store) / "fleet" / settings.fleet.name
        return cls(folder, settings.fairness)

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
        spending = sum_spending(stays_of(entries, ended, {}), first_s, max(first_s, last_s))
        tokens = {usage.group["tenant"]: self._weigh(usage) for usage in by_tenant}
        shares = share_spending(spending, tokens)
        return {
            **asdict(spending),
            "usd": spending.usd,
            "idle_usd": shares.idle_usd,
            "by_tenant": dict(shares.by_tenant),
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


def _start_of(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
