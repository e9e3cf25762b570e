"""Keeps a process's `Catalog` like the store, within a second or so of each change."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from serve_app.catalog import Catalog
from serve_app.errors import StoreError
from serve_app.store.catalog_changes import read_changes
from serve_app.store.database import Database

logger = logging.getLogger(__name__)

_EVERY_S = 0.5
"""A change is to be known everywhere within 2 s."""
_RETRY_S = 2.0


class CatalogWatcher:
    """Reads what changed, again and again. Whoever needs tenants can have one: gateway or router.

    While the store cannot be read, what was known last holds.

    Args:
        database: The store; its tables are made first.
        catalog: What to keep up to date.
        on_change: Called after each change, on the event loop.
    """

    def __init__(
        self, database: Database, catalog: Catalog, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._on_change = on_change
        self._one_at_a_time = asyncio.Lock()
        self.problem = ""
        """Why the store cannot be read; empty when it can."""

    async def run(self) -> None:
        """Makes the tables, then watches until cancelled."""
        has_tables = False
        while True:
            has_tables = has_tables or await self._try(self._database.migrate())
            worked = has_tables and await self._try(self.refresh())
            await asyncio.sleep(_EVERY_S if worked else _RETRY_S)

    async def refresh(self) -> None:
        """Reads what changed now.

        Raises:
            StoreError: The store cannot be read.
        """
        async with self._one_at_a_time:
            changes = await read_changes(self._database, self._catalog.version)
            self._catalog.forget_expired(time.time())
            if changes is None:
                return
            self._catalog.apply(changes)
        logger.info(
            "The catalog is at version %d: %d tenants, %d keys and %d of adapters changed.",
            changes.version,
            len(changes.tenants) + len(changes.deleted),
            len(changes.keys),
            len(changes.adapters),
        )
        self._on_change()

    async def _try(self, work: Awaitable[None]) -> bool:
        try:
            await work
        except StoreError as error:
            if not self.problem:
                logger.error("%s Tenants and keys stay as they were last known.", error)
            self.problem = str(error)
            return False
        if self.problem:
            logger.info("The store can be read again.")
        self.problem = ""
        return True
