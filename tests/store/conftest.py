"""The store's tests run on SQLite and on a real PostgreSQL."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from serve_app.config_store import PostgresStore, SqliteStore, StoreSettings, database_url
from serve_app.store.database import Database
from tests.support.postgres import PostgresServer

URL_VARIABLE = "ARRIERO_TEST_STORE_URL"

MakeStore = Callable[[], StoreSettings]


@pytest.fixture(params=["sqlite", "postgresql"])
def store_settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StoreSettings:
    """A new, empty store of each kind."""
    if request.param == "sqlite":
        return StoreSettings(database=SqliteStore(), state_dir=str(tmp_path))
    server: PostgresServer = request.getfixturevalue("postgres")
    monkeypatch.setenv(URL_VARIABLE, server.make_database())
    return StoreSettings(
        database=PostgresStore(kind="postgresql", url=f"env:{URL_VARIABLE}"),
        state_dir=str(tmp_path),
    )


@pytest.fixture
async def database(store_settings: StoreSettings) -> AsyncIterator[Database]:
    """A store with its tables."""
    database = Database(database_url(store_settings))
    await database.migrate()
    yield database
    await database.close()
