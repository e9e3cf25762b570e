"""Tenants that were made through the admin API."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.catalog import Tenant
from serve_app.config_tenants import TenantSettings
from serve_app.names import TenantId
from serve_app.store.catalog_version import raise_version
from serve_app.store.tables import TenantRow


class TenantRepository:
    """Reads and changes tenants within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, tenant_id: TenantId) -> Tenant | None:
        """Returns a tenant, or None."""
        row = await self._session.get(TenantRow, tenant_id)
        return as_tenant(row) if row is not None and row.deleted_s is None else None

    async def list_all(self) -> list[Tenant]:
        """Returns every tenant, by name."""
        query = select(TenantRow).where(TenantRow.deleted_s.is_(None)).order_by(TenantRow.id)
        return [as_tenant(row) for row in await self._session.scalars(query)]

    async def create(self, settings: TenantSettings, now_s: float) -> Tenant | None:
        """Makes a tenant. Returns None when there is one of that name."""
        version = await raise_version(self._session)
        row = await self._session.get(TenantRow, settings.id)
        if row is None:
            row = TenantRow(id=settings.id)
            self._session.add(row)
        elif row.deleted_s is None:
            return None
        row.settings = _as_json(settings)
        row.created_s = row.updated_s = now_s
        row.deleted_s = None
        row.version = version
        return as_tenant(row)

    async def replace(self, settings: TenantSettings, now_s: float) -> Tenant | None:
        """Gives a tenant other settings. Returns None when there is no such tenant."""
        version = await raise_version(self._session)
        row = await self._session.get(TenantRow, settings.id)
        if row is None or row.deleted_s is not None:
            return None
        row.settings = _as_json(settings)
        row.updated_s = now_s
        row.version = version
        return as_tenant(row)

    async def delete(self, tenant_id: TenantId, now_s: float) -> bool:
        """Deletes a tenant, not its keys. Returns whether there was one."""
        version = await raise_version(self._session)
        row = await self._session.get(TenantRow, tenant_id)
        if row is None or row.deleted_s is not None:
            return False
        row.deleted_s = now_s
        row.version = version
        return True


def as_tenant(row: TenantRow) -> Tenant:
    """Return what a row says."""
    settings = TenantSettings.model_validate({"id": row.id, **row.settings})
    return Tenant(settings, "admin", row.created_s, row.updated_s)


def _as_json(settings: TenantSettings) -> dict[str, object]:
    return settings.model_dump(mode="json", exclude={"id"}, exclude_defaults=True)
