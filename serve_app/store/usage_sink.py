"""The database as the place where recorded usage ends up."""

from collections.abc import Sequence

from serve_app.store.database import Database
from serve_app.store.usage import UsageRepository
from serve_app.usage import UsageRecord


class DatabaseSink:
    """Stores usage (`UsageSink`)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store(self, records: Sequence[UsageRecord]) -> None:
        """Stores records in one transaction; those that are there already stay as they are."""
        async with self._database.write() as session:
            await UsageRepository(session).add(records)
