"""Who may call, as one process knows it: declared and stored tenants and keys, merged in memory.

And which adapters there are, which is stored beside and noticed by the same count of changes.

A declared tenant hides a stored one of the same name. Keys may be stored for a declared tenant.
"""

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from serve_app.adapter_registry import AdapterChanges, AdapterRegistry
from serve_app.config_tenants import (
    Budgets,
    DeclaredKey,
    DeclaredTenant,
    Limits,
    Scope,
    TenantSettings,
)
from serve_app.names import KeyId, ModelName, TenantId

ANONYMOUS = TenantId("anonymous")
"""The one tenant where keys are off."""

NO_LIMITS = Limits()
_NO_BUDGETS = Budgets()
_NO_ADAPTERS = AdapterChanges()


@dataclass(frozen=True)
class Tenant:
    """A tenant and where it comes from.

    Attributes:
        settings: What holds for it.
        source: `declared` in the config file, or made by an `admin`.
        created_s: When it was made; 0 where it is declared.
        updated_s: When it was last changed; 0 where it is declared.
    """

    settings: TenantSettings
    source: Literal["declared", "admin"] = "declared"
    created_s: float = 0.0
    updated_s: float = 0.0

    @property
    def id(self) -> TenantId:
        """Its name."""
        return self.settings.id

    @property
    def cache_salt(self) -> str | None:
        """What separates its cached prefixes from others'; None where they are shared.

        A tenant made anew under an old name does not meet its predecessor's prefixes.
        """
        if not self.settings.has_own_prefix_cache:
            return None
        return f"{self.id}@{self.created_s:.3f}"

    def has_limits_on(self, model: ModelName) -> bool:
        """Whether anything bounds what it uses of a model."""
        return self._has_limits or model in self._limited_models

    @cached_property
    def _has_limits(self) -> bool:
        settings = self.settings
        return settings.budgets != _NO_BUDGETS or _has_any(settings.limits)

    @cached_property
    def _limited_models(self) -> frozenset[str]:
        by_model = self.settings.limits.models
        return frozenset(name for name, limits in by_model.items() if _has_any(limits))

    def may_use(self, *names: str) -> bool:
        """Whether it may use a model that goes by these names; one that is allowed suffices."""
        allowed = self.settings.allowed_models
        return allowed is None or any(_matches(name, p) for p in allowed for name in names)


def _has_any(limits: Limits) -> bool:
    return any(getattr(limits, name) is not None for name in Limits.model_fields)


def _matches(name: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name == pattern


@dataclass(frozen=True)
class Key:
    """What is known of an API key.

    Attributes:
        id: Its name.
        tenant_id: Whose it is.
        hash: SHA-256 of it.
        prefix: Its first characters after `sk-arriero-`; empty where it is declared.
        name: What it is for, for people.
        scopes: What it may do.
        limits: Bounds on it, besides its tenant's.
        created_s: When it was made; 0 where it is declared.
        expires_s: When it stops working; None means never.
        revoked_s: When it was revoked; None means it was not.
        last_used_s: About when it was last used; None means never or not known.
        source: `declared` in the config file, or made by an `admin`.
    """

    id: KeyId
    tenant_id: TenantId
    hash: str = field(repr=False)
    prefix: str = ""
    name: str | None = None
    scopes: frozenset[Scope] = frozenset({"inference"})
    limits: Limits = NO_LIMITS
    created_s: float = 0.0
    expires_s: float | None = None
    revoked_s: float | None = None
    last_used_s: float | None = None
    source: Literal["declared", "admin"] = "admin"

    def is_live(self, now_s: float) -> bool:
        """Whether it works at this time."""
        return self.revoked_s is None and (self.expires_s is None or now_s < self.expires_s)


@dataclass(frozen=True)
class Caller:
    """Who sends a request, known from the key alone.

    Attributes:
        tenant: Whom it is served and billed to.
        key: None where keys are off.
    """

    tenant: Tenant
    key: Key | None = None

    @property
    def tenant_id(self) -> TenantId:
        """The tenant's name."""
        return self.tenant.id

    def has_limits_on(self, model: ModelName) -> bool:
        """Whether anything bounds what it uses of a model; if not, nobody need be asked."""
        if self.tenant.has_limits_on(model):
            return True
        return self.key is not None and self.key.limits != NO_LIMITS

    def can(self, scope: Scope) -> bool:
        """Whether the key has a scope. Without keys there is inference and no administration."""
        return scope in self.key.scopes if self.key is not None else scope == "inference"


@dataclass(frozen=True)
class CatalogChanges:
    """What changed in the store up to a version.

    Attributes:
        version: The store's version that these lead to.
        tenants: Tenants as they are now.
        deleted: Tenants that are gone.
        keys: Keys as they are now.
        is_complete: Whether this is all there is, and what is not here is gone.
        adapters: What changed of adapters.
    """

    version: int = 0
    tenants: tuple[Tenant, ...] = ()
    deleted: tuple[TenantId, ...] = ()
    keys: tuple[Key, ...] = ()
    is_complete: bool = False
    adapters: AdapterChanges = _NO_ADAPTERS


class Catalog:
    """Every tenant and every key that works, by its hash. Changed and read on one event loop."""

    def __init__(self, declared: Iterable[DeclaredTenant] = ()) -> None:
        self.version = -1
        """The store's version that is known; -1 before the store was read."""
        self.adapters = AdapterRegistry()
        """Which adapters there are."""
        self._stored: dict[TenantId, Tenant] = {}
        self._stored_keys: dict[str, Key] = {}
        self._stored_limits: dict[KeyId, Limits] = {}
        self._declared: dict[TenantId, Tenant] = {}
        self._declared_keys: dict[str, Key] = {}
        self._declared_limits: dict[KeyId, Limits] = {}
        self.declare(declared)

    @property
    def is_loaded(self) -> bool:
        """Whether the store has been read once."""
        return self.version >= 0

    def declare(self, tenants: Iterable[DeclaredTenant]) -> None:
        """Replaces what the config file says."""
        tenants = tuple(tenants)
        self._declared = {t.id: Tenant(_without_keys(t)) for t in tenants}
        self._declared_keys = {key.hash: _as_key(t.id, key) for t in tenants for key in t.keys}
        self._declared_limits = {key.id: key.limits for key in self._declared_keys.values()}

    def apply(self, changes: CatalogChanges) -> None:
        """Takes what changed in the store."""
        if changes.is_complete:
            self._stored.clear()
            self._stored_keys.clear()
            self._stored_limits.clear()
            self.adapters.clear_stored()
        self.adapters.apply(changes.adapters)
        for tenant_id in changes.deleted:
            self._stored.pop(tenant_id, None)
        for tenant in changes.tenants:
            self._stored[tenant.id] = tenant
        for key in changes.keys:
            if key.revoked_s is None:
                self._stored_keys[key.hash] = key
                self._stored_limits[key.id] = key.limits
            else:
                self._drop_stored(key)
        self.version = changes.version

    def forget_expired(self, now_s: float) -> None:
        """Drops stored keys that will never work again."""
        for key in [key for key in self._stored_keys.values() if not key.is_live(now_s)]:
            self._drop_stored(key)

    def _drop_stored(self, key: Key) -> None:
        self._stored_keys.pop(key.hash, None)
        self._stored_limits.pop(key.id, None)

    def tenants(self) -> list[Tenant]:
        """Every tenant, by name."""
        merged = self._stored | self._declared
        return [merged[tenant_id] for tenant_id in sorted(merged)]

    def tenant(self, tenant_id: str) -> Tenant | None:
        """One tenant, or None."""
        name = TenantId(tenant_id)
        return self._declared.get(name) or self._stored.get(name)

    def keeps_texts(self, tenant_id: str) -> bool:
        """Whether a tenant wants its prompts and answers kept; one that is gone does not."""
        tenant = self.tenant(tenant_id)
        return tenant is not None and tenant.settings.keeps_texts

    def limits_of_key(self, key_id: KeyId) -> Limits:
        """Bounds on one key; none where it does not work any more."""
        return self._declared_limits.get(key_id) or self._stored_limits.get(key_id, NO_LIMITS)

    def declared_keys(self) -> list[Key]:
        """The keys that the config file lists."""
        return list(self._declared_keys.values())

    def anonymous(self) -> Caller:
        """Whoever calls where keys are off. The config file may declare limits for it."""
        declared = self._declared.get(ANONYMOUS)
        return Caller(declared or Tenant(TenantSettings(id=ANONYMOUS)))

    def identify(self, key_hash: str, now_s: float) -> Caller | None:
        """Returns whose key has this hash, or None when there is none that works now.

        The time that finding the entry takes depends on the hash of what was sent, of which
        someone who guesses keys learns nothing; the comparison itself takes constant time.
        """
        key = self._declared_keys.get(key_hash) or self._stored_keys.get(key_hash)
        if key is None or not hmac.compare_digest(key.hash, key_hash) or not key.is_live(now_s):
            return None
        tenant = self.tenant(key.tenant_id)
        return Caller(tenant, key) if tenant is not None else None


def _without_keys(tenant: DeclaredTenant) -> TenantSettings:
    fields: Mapping[str, object] = {
        name: getattr(tenant, name) for name in TenantSettings.model_fields
    }
    return TenantSettings.model_construct(None, **fields)  # type: ignore[arg-type]  # checked before


def _as_key(tenant_id: TenantId, key: DeclaredKey) -> Key:
    return Key(
        id=key.id,
        tenant_id=tenant_id,
        hash=key.hash,
        name=key.name,
        scopes=frozenset(key.scopes),
        limits=key.limits,
        expires_s=key.expires_s,
        source="declared",
    )
