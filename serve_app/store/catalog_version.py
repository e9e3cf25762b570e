"""The count of changes to tenants and keys, by which gateways notice them."""

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.store.tables import CatalogVersionRow


async def read_version(session: AsyncSession) -> int:
    """Return how many changes were made."""
    return (await session.execute(select(CatalogVersionRow.version))).scalar_one()


async def raise_version(session: AsyncSession) -> int:
    """Count one more change and return its number. Other writers wait from here on."""
    change = update(CatalogVersionRow).values(version=CatalogVersionRow.version + 1)
    return (await session.execute(change.returning(CatalogVersionRow.version))).scalar_one()
