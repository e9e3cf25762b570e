"""What changed since a version: how a process keeps its `Catalog` like the store."""

import time

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.adapter_registry import AdapterChanges
from serve_app.catalog import CatalogChanges
from serve_app.names import TenantId
from serve_app.store.adapters import as_adapter, as_adapter_version
from serve_app.store.catalog_version import read_version
from serve_app.store.database import Database
from serve_app.store.keys import as_key
from serve_app.store.tables import AdapterRow, AdapterVersionRow, KeyRow, TenantRow
from serve_app.store.tenants import as_tenant


async def read_changes(database: Database, since: int) -> CatalogChanges | None:
    """Return what changed after version `since`, or None when nothing did. -1 reads everything.

    Raises:
        StoreError: The store cannot be read.
    """
    async with database.read() as session:
        version = await read_version(session)
        if version == since:
            return None
        if version < since:
            since = -1  # Another database, or an older copy of it, took this one's place.
        adapters = await _read_adapters(session, since)
        tenants = select(TenantRow).where(TenantRow.version > since)
        keys = select(KeyRow).where(KeyRow.version > since)
        if since < 0:
            tenants = tenants.where(TenantRow.deleted_s.is_(None))
            keys = keys.where(
                KeyRow.revoked_s.is_(None),
                or_(KeyRow.expires_s.is_(None), KeyRow.expires_s > time.time()),
            )
        tenant_rows = (await session.scalars(tenants)).all()
        key_rows = (await session.scalars(keys)).all()
    return CatalogChanges(
        version,
        tuple(as_tenant(row) for row in tenant_rows if row.deleted_s is None),
        tuple(TenantId(row.id) for row in tenant_rows if row.deleted_s is not None),
        tuple(as_key(row) for row in key_rows),
        is_complete=since < 0,
        adapters=adapters,
    )


async def _read_adapters(session: AsyncSession, since: int) -> AdapterChanges:
    query = select(AdapterRow).where(AdapterRow.version > since)
    if since < 0:
        query = query.where(AdapterRow.deleted_s.is_(None))
    rows = (await session.scalars(query)).all()
    versions = select(AdapterVersionRow).where(AdapterVersionRow.version > since)
    return AdapterChanges(
        tuple(as_adapter(row) for row in rows if row.deleted_s is None),
        tuple(row.name for row in rows if row.deleted_s is not None),
        tuple(as_adapter_version(row) for row in await session.scalars(versions)),
    )
