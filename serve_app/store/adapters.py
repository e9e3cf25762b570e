"""Adapters that were registered at run time, and the versions found of any adapter."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.adapter_registry import Adapter, AdapterVersion
from serve_app.config_adapters import AdapterSettings
from serve_app.names import TenantId
from serve_app.store.catalog_version import raise_version
from serve_app.store.tables import AdapterRow, AdapterVersionRow


class AdapterRepository:
    """Reads and changes adapters within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(self, settings: AdapterSettings, now_s: float) -> Adapter | None:
        """Registers an adapter. Returns None when there is one of that name."""
        version = await raise_version(self._session)
        row = await self._session.get(AdapterRow, settings.full_name)
        if row is None:
            row = AdapterRow(name=settings.full_name)
            self._session.add(row)
        elif row.deleted_s is None:
            return None
        row.settings = settings.model_dump(mode="json")
        row.created_s = now_s
        row.deleted_s = None
        row.version = version
        return as_adapter(row)

    async def delete(self, name: str, now_s: float) -> bool:
        """Deletes an adapter. Its versions stay, so that their ids stay taken."""
        version = await raise_version(self._session)
        row = await self._session.get(AdapterRow, name)
        if row is None or row.deleted_s is not None:
            return False
        row.deleted_s = now_s
        row.version = version
        return True

    async def delete_of(self, tenant_id: TenantId, now_s: float) -> None:
        """Deletes every adapter that only one tenant might use."""
        rows = await self._session.scalars(select(AdapterRow).where(AdapterRow.deleted_s.is_(None)))
        for row in rows.all():
            if row.settings.get("tenant") == tenant_id:
                await self.delete(row.name, now_s)

    async def note_version(
        self, adapter: Adapter, content: str, mark: str, facts: dict[str, Any], now_s: float
    ) -> AdapterVersion:
        """Makes a content the current one of an adapter, under the id that it has or gets now.

        Args:
            adapter: Whose it is.
            content: SHA-256 of its files.
            mark: Another one when a file at the source is another.
            facts: Rank, modules and size, as `AdapterVersion` calls them.
            now_s: The time.
        """
        changed = await raise_version(self._session)  # Others who note one wait from here on.
        query = select(AdapterVersionRow).where(
            AdapterVersionRow.name == adapter.name, AdapterVersionRow.content == content
        )
        row = (await self._session.scalars(query)).one_or_none()
        if row is None:
            row = AdapterVersionRow(name=adapter.name, content=content, created_s=now_s)
            self._session.add(row)
        row.source, row.mark, row.facts, row.version = adapter.source, mark, facts, changed
        await self._session.flush()
        return as_adapter_version(row)

    async def end_version(self, version: AdapterVersion) -> None:
        """Ends the current version of an adapter, of which its source has nothing any more.

        The same content keeps its id if it comes back. Another one that was noted meanwhile stays.
        """
        changed = await raise_version(self._session)
        query = (
            select(AdapterVersionRow)
            .where(
                AdapterVersionRow.name == version.name, AdapterVersionRow.source == version.source
            )
            .order_by(AdapterVersionRow.version.desc())
            .limit(1)
        )
        row = (await self._session.scalars(query)).one_or_none()
        if row is not None and row.id == version.id:
            row.mark, row.version = "", changed


def as_adapter(row: AdapterRow) -> Adapter:
    """Return what a row says."""
    return Adapter(AdapterSettings.model_validate(row.settings), "admin", row.created_s)


def as_adapter_version(row: AdapterVersionRow) -> AdapterVersion:
    """Return what a row says."""
    return AdapterVersion(
        id=row.id,
        name=row.name,
        source=row.source,
        content=row.content,
        mark=row.mark,
        rank=row.facts["rank"],
        modules=tuple(row.facts["modules"]),
        n_bytes=row.facts["n_bytes"],
        created_s=row.created_s,
        changed=row.version,
    )
