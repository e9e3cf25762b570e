"""What the admin API takes and gives, as it stands in the OpenAPI document."""

import time
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve_app.catalog import Key, Tenant
from serve_app.config_section import Section
from serve_app.config_tenants import (
    KeyName,
    Limits,
    Scope,
    Scopes,
    TenantSettings,
    UnixSeconds,
)
from serve_app.names import TenantIdText

Source = Literal["declared", "admin"]
KeyState = Literal["live", "expired", "revoked"]

_MAX_LIFE_S = 100 * 365 * 86_400.0
_MAX_GRACE_S = 30 * 86_400.0


class KeyForm(Section):
    """A key to be made."""

    tenant: TenantIdText
    """Whose it will be."""
    name: KeyName | None = None
    """What it is for, for people."""
    scopes: Scopes = ("inference",)
    """What it may do."""
    expires_s: UnixSeconds | None = None
    """When it stops working, in seconds since 1970 (UTC). None means never."""
    expires_in_s: Annotated[float, Field(gt=0, le=_MAX_LIFE_S)] | None = None
    """The same, counted from now."""
    limits: Limits = Limits()
    """Bounds on this key, besides its tenant's."""

    @model_validator(mode="after")
    def _check_one_expiry(self) -> Self:
        if self.expires_s is not None and self.expires_in_s is not None:
            raise ValueError("expires_s and expires_in_s are both given; leave one out")
        return self

    def expiry_at(self, now_s: float) -> float | None:
        """When the key stops working if it is made now."""
        return now_s + self.expires_in_s if self.expires_in_s is not None else self.expires_s


class RotationForm(Section):
    """How a key is replaced by a new one."""

    grace_s: Annotated[float, Field(ge=0, le=_MAX_GRACE_S)] = 0.0
    """Seconds for which the old key still works."""


class TenantView(TenantSettings):
    """A tenant, and where it comes from."""

    object: Literal["tenant"] = "tenant"
    source: Source
    """`declared` in the config file, and changed only there; or made by an `admin`."""
    created_s: float | None
    updated_s: float | None


class TenantList(Section):
    """Every tenant."""

    object: Literal["list"] = "list"
    data: tuple[TenantView, ...]


class KeyView(Section):
    """A key without its text, which nobody can show any more."""

    object: Literal["key"] = "key"
    id: str
    tenant: str
    name: str | None
    prefix: str
    """Its first characters after `sk-arriero-`."""
    scopes: tuple[Scope, ...]
    limits: Limits
    source: Source
    state: KeyState
    created_s: float | None
    expires_s: float | None
    revoked_s: float | None
    last_used_s: float | None
    """About when it was last used, to a minute or two."""


class FreshKeyView(KeyView):
    """A key that was just made: the only time that its text is shown."""

    key: str = Field(repr=False)
    """The key. It is not stored; whoever loses it needs another one."""


class KeyList(Section):
    """Keys, oldest first."""

    object: Literal["list"] = "list"
    data: tuple[KeyView, ...]


class Deleted(Section):
    """Confirms that something is gone."""

    id: str
    deleted: Literal[True] = True


def view_tenant(tenant: Tenant) -> TenantView:
    """Return how a tenant is shown."""
    return TenantView.model_validate(
        {
            **tenant.settings.model_dump(),
            "source": tenant.source,
            "created_s": tenant.created_s or None,
            "updated_s": tenant.updated_s or None,
        }
    )


def view_key(key: Key) -> KeyView:
    """Return how a key is shown."""
    return KeyView.model_validate(_key_fields(key))


def view_fresh_key(key: Key, text: str) -> FreshKeyView:
    """Return how a key is shown this once."""
    return FreshKeyView.model_validate({**_key_fields(key), "key": text})


def view_keys(keys: Iterable[Key]) -> KeyList:
    """Return how keys are shown."""
    return KeyList(data=tuple(view_key(key) for key in keys))


def _key_fields(key: Key) -> dict[str, object]:
    return {
        "id": key.id,
        "tenant": key.tenant_id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": tuple(sorted(key.scopes)),
        "limits": key.limits,
        "source": key.source,
        "state": _state_of(key),
        "created_s": key.created_s or None,
        "expires_s": key.expires_s,
        "revoked_s": key.revoked_s,
        "last_used_s": key.last_used_s,
    }


def _state_of(key: Key) -> KeyState:
    if key.revoked_s is not None:
        return "revoked"
    return "live" if key.is_live(time.time()) else "expired"
