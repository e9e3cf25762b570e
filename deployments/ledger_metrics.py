"""What a ledger counts and shows: refusals, tokens set aside and used, budgets, its journal."""

from collections.abc import Iterable

from serve_app.ledger_messages import Refused, Reserve, Usage
from serve_app.loop_watch import watch_loop
from serve_app.metrics import Metrics
from serve_app.names import TenantId
from serve_app.policy.leases import Lease
from serve_app.policy.limits import BudgetUse
from serve_app.telemetry import (
    BUDGET_USED,
    JOURNAL_SYNC,
    LEASES,
    LIMIT_REFUSALS,
    RESERVED_TOKENS,
    SETTLED_TOKENS,
    UNSYNCED,
)


class LedgerMetrics:
    """The metrics of one ledger. Lives on its event loop."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._sync = self._metrics.histogram(JOURNAL_SYNC)
        self._unsynced = self._metrics.gauge(UNSYNCED)
        self._leases = self._metrics.gauge(LEASES)
        self._shown: set[tuple[str, str]] = set()
        """Tenants' labels and limits whose use was shown last."""

    async def watch(self) -> None:
        """Watches the event loop until cancelled."""
        await watch_loop(self._metrics)

    def refuse(self, ask: Reserve, refused: Refused) -> None:
        """A request may not begin."""
        self._metrics.counter(LIMIT_REFUSALS, ask.tenant, refused.limit).add()

    def reserve(self, lease: Lease) -> None:
        """A request may begin, for the first time that it asks."""
        charge = lease.charge
        tokens = charge.prompt_tokens + charge.completion_tokens
        self._metrics.counter(RESERVED_TOKENS, lease.reserve.tenant).add(tokens)

    def settle(self, tenant: TenantId, usage: Usage) -> None:
        """A request has ended."""
        tokens = usage.prompt_tokens + usage.completion_tokens
        self._metrics.counter(SETTLED_TOKENS, tenant).add(tokens)

    def sync(self, took_s: float) -> None:
        """The journal was forced to disk."""
        self._sync.observe(took_s)

    def show(self, n_leases: int, unsynced_s: float) -> None:
        """Replaces what was shown.

        Args:
            n_leases: That run.
            unsynced_s: Age of the oldest entry that is not on disk.
        """
        self._leases.set(n_leases)
        self._unsynced.set(unsynced_s)

    def show_budgets(self, uses: Iterable[BudgetUse]) -> None:
        """Replaces what was shown; of tenants that share a label, the one nearest its end."""
        values: dict[tuple[str, str], float] = {}
        for use in uses:
            key = (self._metrics.bound("tenant", use.tenant), use.limit)
            values[key] = max(values.get(key, 0.0), use.ratio)
        for key in self._shown | values.keys():
            self._metrics.gauge(BUDGET_USED, *key).set(values.get(key, 0.0))
        self._shown = set(values)
