"""Charges tenants for adapters that engines have loaded for them."""

from deployments.known_engine import KnownEngine
from serve_app.policy.fairness import Vtc
from serve_app.policy.load_price import price_load


class LoadCharges:
    """Asks the policy for a price, once a load.

    Args:
        queue: Keeps the counters.
        fixed_tokens: What each load counts for; None measures it.
    """

    def __init__(self, queue: Vtc, fixed_tokens: float | None) -> None:
        self._queue = queue
        self._fixed_tokens = fixed_tokens

    def charge(self, engine: KnownEngine | None) -> None:
        """Charges what has come since the last call."""
        if engine is None or not engine.loaded_for:
            return
        report, tally = engine.report, engine.report.adapters.tally
        n_tokens = price_load(
            tally.loads, tally.stall_s, report.load.tokens_per_s, self._fixed_tokens
        )
        payers, engine.loaded_for = engine.loaded_for, []
        for tenant in payers:
            self._queue.charge_load(tenant, report.model, n_tokens)
