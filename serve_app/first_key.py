"""The first admin key: made in the store itself, by whoever has access to it.

The admin API needs a key, so the first one cannot come from there. It adds no power: who can write
to the store can make any key anyway.
"""

import time
from typing import Any

from serve_app.catalog import Key
from serve_app.config import Settings
from serve_app.config_store import database_url
from serve_app.config_tenants import Scope, TenantSettings
from serve_app.gateway.admin_forms import KeyForm, view_fresh_key
from serve_app.keys import make_key
from serve_app.store.database import Database
from serve_app.store.keys import KeyRepository
from serve_app.store.tenants import TenantRepository


async def make_first_key(
    settings: Settings,
    *,
    tenant: str,
    name: str,
    scopes: tuple[Scope, ...],
    expires_s: float | None,
) -> dict[str, Any]:
    """Make a key, and its tenant where there is none of that name; return how it is shown.

    Raises:
        StoreError: The store cannot be written.
        ValidationError: A name or time has the wrong form.
    """
    form = KeyForm.model_validate(
        {"tenant": tenant, "name": name, "scopes": scopes, "expires_s": expires_s}
    )
    fresh, now_s = make_key(), time.time()
    key = Key(
        id=fresh.id,
        tenant_id=form.tenant,
        hash=fresh.hash,
        prefix=fresh.prefix,
        name=form.name,
        scopes=frozenset(form.scopes),
        created_s=now_s,
        expires_s=form.expires_s,
    )
    is_declared = any(declared.id == form.tenant for declared in settings.tenants)
    database = Database(database_url(settings.store))
    try:
        await database.migrate()
        async with database.write() as session:
            tenants = TenantRepository(session)
            if not is_declared and await tenants.get(form.tenant) is None:
                await tenants.create(TenantSettings(id=form.tenant), now_s)
            await KeyRepository(session).add(key)
    finally:
        await database.close()
    return view_fresh_key(key, fresh.text).model_dump(mode="json")
