"""Limits and requests under them, for tests of the policy and of the ledger."""

import uuid
from typing import Any

from serve_app.config_limits import LimitSpec, PriceSpec
from serve_app.ledger_messages import LeaseId, Reserve
from serve_app.names import KeyId, ModelName, TenantId
from serve_app.policy.leases import Scope

ACME, LLAMA = TenantId("acme"), ModelName("llama")


class TableOfLimits:
    """A `LimitSource` out of two dictionaries."""

    def __init__(
        self, limits: dict[Scope, LimitSpec], prices: dict[ModelName, PriceSpec] | None = None
    ) -> None:
        self.limits = limits
        self.prices = prices or {}

    def limits_of(self, scope: Scope) -> LimitSpec:
        """Returns a scope's limits."""
        return self.limits.get(scope, LimitSpec())

    def price_of(self, model: ModelName, adapter: str = "") -> PriceSpec:
        """Returns what a model's tokens cost."""
        return self.prices.get(model, PriceSpec())


def limit_acme(**limits: Any) -> TableOfLimits:
    """Limits of one tenant."""
    return TableOfLimits({Scope(ACME): LimitSpec(**limits)})


def ask_for(
    prompt_tokens: int = 10, *max_tokens: int, lease: str | None = None, **changes: Any
) -> Reserve:
    """A request of that tenant, by default for 10 tokens and 10 more."""
    fields: dict[str, Any] = {"tenant": ACME, "key": KeyId(""), "model": LLAMA, "requests": 1}
    return Reserve(
        lease=LeaseId(lease or uuid.uuid4().hex),
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens or (10,),
        **(fields | changes),
    )
