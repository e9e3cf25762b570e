"""API keys that were made through the admin API or the command line."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.catalog import Key
from serve_app.config_tenants import Limits, Scope
from serve_app.keys import FreshKey
from serve_app.names import KeyId, TenantId
from serve_app.store.catalog_version import raise_version
from serve_app.store.tables import KeyRow

LAST_USED_STEP_S = 60.0
"""How exactly the last use is known. A row is not written for each request."""


class KeyRepository:
    """Reads and changes keys within one session."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, key_id: KeyId) -> Key | None:
        """Returns a key, or None."""
        row = await self._session.get(KeyRow, key_id)
        return as_key(row) if row is not None else None

    async def list_all(self, tenant_id: TenantId | None = None) -> list[Key]:
        """Returns every key or a tenant's, the revoked too, oldest first."""
        query = select(KeyRow).order_by(KeyRow.created_s, KeyRow.id)
        if tenant_id is not None:
            query = query.where(KeyRow.tenant_id == tenant_id)
        return [as_key(row) for row in await self._session.scalars(query)]

    async def add(self, key: Key) -> None:
        """Adds a key that was just made."""
        self._session.add(
            KeyRow(
                id=key.id,
                tenant_id=key.tenant_id,
                hash=key.hash,
                prefix=key.prefix,
                name=key.name,
                scopes=sorted(key.scopes),
                limits=key.limits.model_dump(mode="json", exclude_none=True),
                created_s=key.created_s,
                expires_s=key.expires_s,
                version=await raise_version(self._session),
            )
        )

    async def rotate(
        self, key_id: KeyId, fresh: FreshKey, now_s: float, grace_s: float
    ) -> Key | None:
        """Adds a key like another one, which works for `grace_s` more and no longer.

        Returns None when that other one does not exist or works no more.
        """
        version = await raise_version(self._session)
        row = await self._session.get(KeyRow, key_id)
        if row is None or not as_key(row).is_live(now_s):
            return None
        successor = replace(
            as_key(row),
            id=fresh.id,
            hash=fresh.hash,
            prefix=fresh.prefix,
            created_s=now_s,
            last_used_s=None,
        )
        end_s = now_s + grace_s
        row.expires_s = end_s if row.expires_s is None else min(row.expires_s, end_s)
        if grace_s == 0:
            row.revoked_s = now_s
        row.version = version
        await self.add(successor)
        return successor

    async def revoke(self, key_id: KeyId, now_s: float) -> Key | None:
        """Ends a key at once, for good. Returns None when there is no such key."""
        version = await raise_version(self._session)
        row = await self._session.get(KeyRow, key_id)
        if row is None:
            return None
        if row.revoked_s is None:
            row.revoked_s = now_s
            row.version = version
        return as_key(row)

    async def revoke_all(self, tenant_id: TenantId, now_s: float) -> None:
        """Ends all keys of a tenant."""
        version = await raise_version(self._session)
        await self._session.execute(
            update(KeyRow)
            .where(KeyRow.tenant_id == tenant_id, KeyRow.revoked_s.is_(None))
            .values(revoked_s=now_s, version=version)
        )

    async def note_use(self, used_s: Mapping[KeyId, float]) -> None:
        """Keeps about when keys were last used. Changes nothing that a gateway must know."""
        for key_id, at_s in sorted(used_s.items()):
            await self._session.execute(
                update(KeyRow)
                .where(
                    KeyRow.id == key_id,
                    or_(
                        KeyRow.last_used_s.is_(None),
                        KeyRow.last_used_s < at_s - LAST_USED_STEP_S / 2,
                    ),
                )
                .values(last_used_s=at_s)
            )


def as_key(row: KeyRow) -> Key:
    """Return what a row says."""
    return Key(
        id=KeyId(row.id),
        tenant_id=TenantId(row.tenant_id),
        hash=row.hash,
        prefix=row.prefix,
        name=row.name,
        scopes=frozenset(cast("Collection[Scope]", row.scopes)),
        limits=Limits.model_validate(row.limits),
        created_s=row.created_s,
        expires_s=row.expires_s,
        revoked_s=row.revoked_s,
        last_used_s=row.last_used_s,
    )
