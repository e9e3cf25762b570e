"""Tenants and their keys, as the configuration declares them and the admin API takes them."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from serve_app.config_section import Section
from serve_app.names import Form, KeyId, TenantIdText

Scope = Literal["inference", "admin"]
"""What a key may do: send requests, or use the admin API."""

Count = Annotated[int, Field(ge=1, le=1 << 50)]
Usd = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
UnixSeconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""Seconds since 1970-01-01 00:00 UTC."""

KeyHash = Annotated[
    str, AfterValidator(Form(r"[0-9a-f]{64}", "a SHA-256 in 64 lower-case hexadecimal digits"))
]
KeyName = Annotated[
    str, AfterValidator(Form(r"[^\x00-\x1f\x7f]{1,128}", "1 to 128 characters in one line"))
]
ModelPattern = Annotated[
    str,
    AfterValidator(
        Form(
            r"(?=[^*])[A-Za-z0-9._/:-]{0,256}\*?|\*",
            "a model, `model:adapter`, or the beginning of one with '*' at the end",
        )
    ),
]


class Limits(Section):
    """Bounds on what may be used at a time. None means no bound."""

    requests_per_min: Count | None = None
    """Requests admitted in any 60 seconds."""
    prompt_tokens_per_min: Count | None = None
    """Prompt tokens of the requests admitted in any 60 seconds."""
    completion_tokens_per_min: Count | None = None
    """Generated tokens of the requests admitted in any 60 seconds."""
    total_tokens_per_min: Count | None = None
    """Prompt and generated tokens of the requests admitted in any 60 seconds."""
    concurrent_requests: Count | None = None
    """Requests that wait or run at the same time."""
    max_output_tokens: Count | None = None
    """Tokens that one completion may have."""


class TenantLimits(Limits):
    """Bounds on a tenant, over all its keys."""

    models: dict[str, Limits] = Field(default_factory=dict)
    """Further bounds on one model, by the model's name."""


class Budgets(Section):
    """Bounds on what may be used up in a day or a month (UTC). None means no bound."""

    tokens_per_day: Count | None = None
    """Prompt and generated tokens of the requests admitted on one day."""
    tokens_per_month: Count | None = None
    """Prompt and generated tokens of the requests admitted in one calendar month."""
    usd_per_day: Usd | None = None
    """Cost in US dollars, by `prices`, of the requests admitted on one day."""
    usd_per_month: Usd | None = None
    """Cost in US dollars, by `prices`, of the requests admitted in one calendar month."""


Scopes = Annotated[tuple[Scope, ...], Field(strict=False, min_length=1, max_length=2)]


class DeclaredKey(Section):
    """A key of a declared tenant. `arriero keys hash` makes a key and its hash."""

    hash: KeyHash
    """SHA-256 of the key, in lower-case hexadecimal. Never the key itself."""
    name: KeyName | None = None
    """What the key is for, for people."""
    scopes: Scopes = ("inference",)
    """What the key may do: `inference`, `admin`, or both."""
    expires_s: UnixSeconds | None = None
    """When it stops working, in seconds since 1970 (UTC). None means never."""
    limits: Limits = Limits()
    """Bounds on this key, besides its tenant's."""

    @property
    def id(self) -> KeyId:
        """Names the key where it is shown and billed; tells nothing of the key."""
        return KeyId(f"declared-{sha256(self.hash.encode()).hexdigest()[:12]}")


class TenantTerms(Section):
    """What holds for a tenant."""

    weight: Annotated[float, Field(ge=0.001, le=1000, allow_inf_nan=False)] = 1.0
    """Its part of the engines beside others who wait: 2 gets twice as much as 1."""
    tier: Annotated[int, Field(ge=0, le=9)] = 0
    """Tenants of a higher tier go before those of a lower one."""
    limits: TenantLimits = TenantLimits()
    """Bounds on requests and tokens a minute, and on requests at the same time."""
    budgets: Budgets = Budgets()
    """Bounds on tokens and cost a day and a month."""
    allowed_models: Annotated[tuple[ModelPattern, ...], Field(strict=False)] | None = None
    """Models it may use, such as `llama`, `llama:sql` (an adapter), `llama:*`. None means all."""
    has_own_prefix_cache: bool = False
    """Whether its prompts share no cached prefixes with other tenants'. Costs repeated work."""
    keeps_texts: bool = False
    """Whether its prompts and answers are kept with the records of its requests, for
    `records.keep_texts_days`. They can be read and replayed by administrators."""


class _Named(Section):
    """Something with a tenant's name."""

    id: TenantIdText
    """Name of the tenant. 1 to 64 letters, digits, `.`, `_` or `-`."""


class TenantSettings(TenantTerms, _Named):  # In this order the name comes first.
    """A tenant and what holds for it, wherever it was written."""


class DeclaredTenant(TenantSettings):
    """A tenant that stands in the config file. The admin API shows it and cannot change it."""

    keys: Annotated[tuple[DeclaredKey, ...], Field(strict=False)] = ()
    """Its keys, as hashes. More of them may be made through the admin API."""


def find_tenant_conflict(tenants: Iterable[DeclaredTenant]) -> str | None:
    """Return what two declared tenants both claim, or None."""
    owner: dict[str, str] = {}
    seen: set[str] = set()
    for tenant in tenants:
        if tenant.id in seen:
            return f"the tenant {tenant.id!r} is declared twice; merge them or remove one"
        seen.add(tenant.id)
        for key in tenant.keys:
            if key.hash in owner:
                return (
                    f"the key hash {key.hash[:8]}… is listed for tenant {owner[key.hash]!r} and "
                    f"again for {tenant.id!r}; a key belongs to one tenant and is listed once, "
                    "remove one"
                )
            owner[key.hash] = tenant.id
    return None
