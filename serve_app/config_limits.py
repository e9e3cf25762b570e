"""How limits are kept: what binds one tenant or key, what tokens cost, how the ledger counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from serve_app.config_section import Cpus, Section
from serve_app.config_store import StoreSettings, Where, state_dir_of
from serve_app.config_tenants import Budgets, Limits

Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class LimitSpec(Limits, Budgets):
    """All that binds one tenant, one key, or one tenant on one model. None means no bound."""


class PriceSpec(Section):
    """What a model's tokens cost: what budgets in US dollars count, and usage records say."""

    usd_per_million_prompt_tokens: Price = 0.0
    """US dollars for a million prompt tokens."""
    usd_per_million_completion_tokens: Price = 0.0
    """US dollars for a million generated tokens."""

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what tokens cost."""
        prompt = prompt_tokens * self.usd_per_million_prompt_tokens
        return (prompt + completion_tokens * self.usd_per_million_completion_tokens) / 1e6


_FREE = PriceSpec()


def find_price(prices: Mapping[str, PriceSpec], model: str, adapter: str) -> PriceSpec:
    """Return what tokens cost: the adapter's own price, or its base model's, or nothing.

    Args:
        prices: By base model, or by `model:adapter`.
        model: The base model's name.
        adapter: The adapter's full name; empty is the base model itself.
    """
    return prices.get(adapter) or prices.get(model) or _FREE


class LedgerSettings(Section):
    """The actor that keeps count of what is used and holds everyone to the limits."""

    cpus: Cpus = 0.1
    """CPUs that the ledger asks of Ray, on the head node. 0 where the head node has none."""
    folder: Where | None = None
    """Folder of its journal on the head node. None means `ledger` in the state folder."""
    lease_s: Annotated[float, Field(ge=5, le=3600, allow_inf_nan=False)] = 30.0
    """Seconds after which the requests of a gateway that went silent count as ended."""
    wait_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 10.0
    """Seconds that a request waits for a ledger that is away. Then it is refused with 503."""
    reserve: Literal["max_tokens", "predicted"] = "max_tokens"
    """What is set aside for a completion when it begins: all it may have, or the mean of what the
    tenant's lately had. The second admits more, and may overrun token limits (docs/limits.md)."""


def ledger_folder(settings: LedgerSettings, store: StoreSettings) -> Path:
    """Return the journal's folder on this machine."""
    if settings.folder is not None:
        return Path(settings.folder)
    return state_dir_of(store) / "ledger"
