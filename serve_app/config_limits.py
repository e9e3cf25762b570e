"""How much may be used: limits, budgets, prices, and how the ledger keeps count of them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from serve_app.config_section import Cpus, Section
from serve_app.names import Form, ModelNameText

Count = Annotated[int, Field(ge=1, le=1 << 50)]
Usd = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Price = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Folder = Annotated[
    str, AfterValidator(Form(r"/[^\x00]*", "an absolute path; the ledger does not run here"))
]


class LimitSpec(Section):
    """How much one tenant, one key, or one tenant on one model may use. None means no bound."""

    requests_per_min: Count | None = None
    """Requests admitted in any 60 seconds."""
    prompt_tokens_per_min: Count | None = None
    """Prompt tokens of the requests admitted in any 60 seconds."""
    completion_tokens_per_min: Count | None = None
    """Completion tokens of the requests admitted in any 60 seconds."""
    total_tokens_per_min: Count | None = None
    """Prompt and completion tokens of the requests admitted in any 60 seconds."""
    concurrent_requests: Count | None = None
    """Requests that are waiting or running at the same time."""
    max_output_tokens: Count | None = None
    """Completion tokens that one completion may have."""
    tokens_per_day: Count | None = None
    """Prompt and completion tokens of the requests admitted on one day (UTC)."""
    tokens_per_month: Count | None = None
    """Prompt and completion tokens of the requests admitted in one calendar month (UTC)."""
    usd_per_day: Usd | None = None
    """Cost in US dollars of the requests admitted on one day (UTC)."""
    usd_per_month: Usd | None = None
    """Cost in US dollars of the requests admitted in one calendar month (UTC)."""


class TenantLimitSpec(LimitSpec):
    """A tenant's limits over all it does, and further ones on its keys and models."""

    keys: dict[str, LimitSpec] = Field(default_factory=dict)
    """Further limits on one key, by the key's id."""
    models: dict[ModelNameText, LimitSpec] = Field(default_factory=dict)
    """Further limits on one base model, by its name."""


class PriceSpec(Section):
    """What a model's tokens cost; what USD budgets count."""

    usd_per_million_prompt_tokens: Price = 0.0
    """US dollars for a million prompt tokens."""
    usd_per_million_completion_tokens: Price = 0.0
    """US dollars for a million completion tokens."""


class LedgerSettings(Section):
    """The actor that keeps count of what is used and holds everyone to the limits."""

    cpus: Cpus = 0.1
    """CPUs that the ledger asks of Ray."""
    folder: Folder | None = None
    """Folder of its journal. None means `ledger` in `ARRIERO_STATE_DIR`, or else in
    `~/.local/state/arriero`."""
    lease_s: Annotated[float, Field(ge=5, le=3600, allow_inf_nan=False)] = 30.0
    """Seconds after which the requests of a gateway that went silent count as ended."""
    wait_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 10.0
    """Seconds that a request waits for a ledger that is away. Then it is refused with 503."""
    reserve: Literal["max_tokens", "predicted"] = "max_tokens"
    """What is set aside for a completion when it begins: all it may have, or the mean of what the
    tenant's lately had. The second admits more, and may overrun token limits (docs/limits.md)."""


def ledger_folder(settings: LedgerSettings, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the journal's folder on this machine."""
    if settings.folder is not None:
        return Path(settings.folder)
    given = environment.get("ARRIERO_STATE_DIR")
    if given:
        return Path(given).absolute() / "ledger"
    state = Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    return state / "arriero" / "ledger"
