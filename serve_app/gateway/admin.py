"""The admin API: tenants and their keys. Needs a key with the scope `admin` (`app._scope_of`).

Tenants that the config file declares are shown here and changed there. Keys may be made here for
those too.
"""

import re
import time
from typing import Any

from fastapi import APIRouter, Depends, FastAPI

from serve_app.catalog import Key, Tenant
from serve_app.config_tenants import TenantSettings, TenantTerms
from serve_app.gateway.accounts import Accounts
from serve_app.gateway.admin_forms import (
    Deleted,
    FreshKeyView,
    KeyForm,
    KeyList,
    KeyView,
    RotationForm,
    TenantList,
    TenantView,
    view_fresh_key,
    view_key,
    view_keys,
    view_tenant,
)
from serve_app.gateway.auth import check_scope, current_caller
from serve_app.gateway.error_body import ApiError
from serve_app.keys import make_key
from serve_app.names import KeyId, TenantId
from serve_app.store.adapters import AdapterRepository
from serve_app.store.keys import KeyRepository
from serve_app.store.tenants import TenantRepository

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused, in OpenAI's error body"}
}


async def require_admin() -> None:
    """Once more, beside the paths: a route of this module is never without its check."""
    check_scope(current_caller.get(), "admin")


def add_admin_routes(app: FastAPI, accounts: Accounts) -> None:
    """Adds the routes under /admin."""
    router = APIRouter(
        prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)], responses=ERRORS
    )
    _add_tenant_routes(router, accounts)
    _add_key_routes(router, accounts)
    app.include_router(router)


def _add_tenant_routes(router: APIRouter, accounts: Accounts) -> None:
    @router.get("/tenants")
    async def list_tenants() -> TenantList:
        """Every tenant, by name."""
        await accounts.refresh()
        return TenantList(data=tuple(view_tenant(tenant) for tenant in accounts.catalog.tenants()))

    @router.post("/tenants", status_code=201)
    async def create_tenant(form: TenantSettings) -> TenantView:
        """Makes a tenant. Every gateway knows it within 2 s."""
        _check_not_declared(accounts, form.id)
        async with accounts.change() as session:
            tenant = await TenantRepository(session).create(form, time.time())
        if tenant is None:
            raise ApiError(
                409, f"There is a tenant {form.id!r} already.", param="id", code="tenant_exists"
            )
        return view_tenant(tenant)

    @router.get("/tenants/{tenant_id}")
    async def show_tenant(tenant_id: str) -> TenantView:
        """One tenant."""
        return view_tenant(await _find_tenant(accounts, tenant_id))

    @router.patch("/tenants/{tenant_id}")
    async def update_tenant(tenant_id: str, changes: TenantTerms) -> TenantView:
        """Changes what the body names; a bound of null is lifted. The rest stays."""
        _check_not_declared(accounts, tenant_id)
        await _find_tenant(accounts, tenant_id)
        async with accounts.change() as session:
            repository = TenantRepository(session)
            present = await repository.get(TenantId(tenant_id))
            changed = _merge(present.settings, changes) if present is not None else None
            tenant = await repository.replace(changed, time.time()) if changed else None
        if tenant is None:
            raise _no_tenant(tenant_id)
        return view_tenant(tenant)

    @router.delete("/tenants/{tenant_id}")
    async def delete_tenant(tenant_id: str) -> Deleted:
        """Deletes a tenant with its keys, its own adapters and its texts. Its usage stays."""
        _check_not_declared(accounts, tenant_id)
        await _find_tenant(accounts, tenant_id)
        now_s = time.time()
        async with accounts.change() as session:
            await TenantRepository(session).delete(TenantId(tenant_id), now_s)
            await KeyRepository(session).revoke_all(TenantId(tenant_id), now_s)
            await AdapterRepository(session).delete_of(TenantId(tenant_id), now_s)
        await accounts.delete_records("texts", TenantId(tenant_id), None)
        return Deleted(id=tenant_id)


def _add_key_routes(router: APIRouter, accounts: Accounts) -> None:
    @router.get("/keys")
    async def list_keys(tenant: str | None = None) -> KeyList:
        """Every key, or a tenant's, without their texts. The revoked and expired too."""
        if tenant is not None:
            await _find_tenant(accounts, tenant)
        async with accounts.read() as session:
            name = TenantId(tenant) if tenant is not None else None
            stored = await KeyRepository(session).list_all(name)
        declared = [k for k in accounts.catalog.declared_keys() if tenant in (None, k.tenant_id)]
        return view_keys([*declared, *stored])

    @router.post("/keys", status_code=201)
    async def create_key(form: KeyForm) -> FreshKeyView:
        """Makes a key and shows it, this once."""
        tenant = await _find_tenant(accounts, form.tenant)
        fresh, now_s = make_key(), time.time()
        key = Key(
            id=fresh.id,
            tenant_id=tenant.id,
            hash=fresh.hash,
            prefix=fresh.prefix,
            name=form.name,
            scopes=frozenset(form.scopes),
            limits=form.limits,
            created_s=now_s,
            expires_s=form.expiry_at(now_s),
        )
        async with accounts.change() as session:
            await KeyRepository(session).add(key)
        return view_fresh_key(key, fresh.text)

    @router.get("/keys/{key_id}")
    async def show_key(key_id: str) -> KeyView:
        """One key, without its text."""
        declared = _find_declared_key(accounts, key_id)
        if declared is not None:
            return view_key(declared)
        async with accounts.read() as session:
            key = await KeyRepository(session).get(_key_id(key_id))
        if key is None:
            raise _no_key(key_id)
        return view_key(key)

    @router.post("/keys/{key_id}/rotate", status_code=201)
    async def rotate_key(key_id: str, form: RotationForm) -> FreshKeyView:
        """Makes a key like this one and shows it; this one ends, at once or after a while."""
        _check_key_not_declared(accounts, key_id)
        fresh, now_s = make_key(), time.time()
        async with accounts.change() as session:
            key = await KeyRepository(session).rotate(_key_id(key_id), fresh, now_s, form.grace_s)
        if key is None:
            raise _no_key(key_id, " that works")
        return view_fresh_key(key, fresh.text)

    @router.post("/keys/{key_id}/revoke")
    async def revoke_key(key_id: str) -> KeyView:
        """Ends a key for good, on every gateway within 2 s. Requests that run go on."""
        _check_key_not_declared(accounts, key_id)
        async with accounts.change() as session:
            key = await KeyRepository(session).revoke(_key_id(key_id), time.time())
        if key is None:
            raise _no_key(key_id)
        return view_key(key)


def _merge(present: TenantSettings, changes: TenantTerms) -> TenantSettings:
    merged = _merge_deep(present.model_dump(), changes.model_dump(exclude_unset=True))
    return TenantSettings.model_validate(merged)


def _merge_deep(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in new.items():
        before = merged.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[name] = _merge_deep(before, value)
        else:
            merged[name] = value
    return merged


async def _find_tenant(accounts: Accounts, tenant_id: str) -> Tenant:
    await accounts.refresh()  # It may have been made through another gateway a moment ago.
    tenant = accounts.catalog.tenant(tenant_id)
    if tenant is None:
        raise _no_tenant(tenant_id)
    return tenant


def _no_tenant(tenant_id: str) -> ApiError:
    return ApiError(
        404,
        f"There is no tenant {tenant_id[:64]!r}. GET /admin/tenants lists those there are.",
        code="tenant_not_found",
    )


def _no_key(key_id: str, which: str = "") -> ApiError:
    return ApiError(
        404,
        f"There is no key {key_id[:64]!r}{which}. GET /admin/keys lists those there are.",
        code="key_not_found",
    )


def _key_id(text: str) -> KeyId:
    # Databases differ in what they make of other characters; a key is named by none.
    if re.fullmatch(r"[A-Za-z0-9-]{1,64}", text) is None:
        raise ApiError(404, "That is not the id of a key.", code="key_not_found")
    return KeyId(text)


def _check_not_declared(accounts: Accounts, tenant_id: str) -> None:
    tenant = accounts.catalog.tenant(tenant_id)
    if tenant is not None and tenant.source == "declared":
        raise ApiError(
            409,
            f"The tenant {tenant.id!r} is declared in the config file, so it is not changed here. "
            "Change it there and deploy the file.",
            code="tenant_is_declared",
        )


def _find_declared_key(accounts: Accounts, key_id: str) -> Key | None:
    keys = accounts.catalog.declared_keys()
    return next((key for key in keys if key.id == key_id), None)


def _check_key_not_declared(accounts: Accounts, key_id: str) -> None:
    key = _find_declared_key(accounts, key_id)
    if key is not None:
        raise ApiError(
            409,
            f"The key {key.id!r} is declared in the config file, so it is not changed here. "
            "Replace its hash there and deploy the file.",
            code="key_is_declared",
        )
