import asyncio
import subprocess
import sys
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from serve_app.catalog import Key
from serve_app.config_store import SqliteStore, StoreSettings, database_url
from serve_app.errors import ConfigError, StoreError
from serve_app.names import KeyId, TenantId
from serve_app.store.catalog_version import raise_version, read_version
from serve_app.store.database import Database
from serve_app.store.keys import KeyRepository
from serve_app.store.tables import Table
from tests.support.postgres import PostgresServer

_MIGRATE = """
import asyncio, sys
from serve_app.catalog import Key
from serve_app.config_store import StoreSettings, database_url
from serve_app.store.database import Database
settings = StoreSettings.model_validate_json(sys.argv[1])
asyncio.run(Database(database_url(settings)).migrate())
"""


async def test_migrations_make_the_tables_that_the_code_expects(
    database: Database, store_settings: StoreSettings
) -> None:
    def compare(connection: Connection) -> Any:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, Table.metadata)

    engine = create_async_engine(database_url(store_settings))
    async with engine.connect() as connection:
        assert await connection.run_sync(compare) == []
    await engine.dispose()


async def test_migrating_again_changes_nothing(database: Database) -> None:
    async with database.write() as session:
        await raise_version(session)
    await database.migrate()
    async with database.read() as session:
        assert await read_version(session) == 1


@pytest.mark.slow
def test_processes_that_start_together_migrate_once(store_settings: StoreSettings) -> None:
    command = [sys.executable, "-c", _MIGRATE, store_settings.model_dump_json()]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors.decode()


async def test_writers_that_run_at_once_lose_no_change(database: Database) -> None:
    async def change() -> None:
        for _ in range(10):
            async with database.write() as session:
                await read_version(session)
                await raise_version(session)

    await asyncio.gather(*(change() for _ in range(4)))
    async with database.read() as session:
        assert await read_version(session) == 40


async def test_exception_undoes_what_a_session_wrote(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as session:
            await raise_version(session)
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await fail()
    async with database.read() as session:
        assert await read_version(session) == 0


async def test_error_says_its_kind_and_no_value(database: Database) -> None:
    async def add_twice() -> None:
        async with database.write() as session:
            for key_id in ("a", "b"):
                await KeyRepository(session).add(Key(KeyId(key_id), TenantId("t"), hash="hush"))

    with pytest.raises(StoreError) as caught:
        await add_twice()
    message = str(caught.value)
    assert "such a row exists" in message
    assert "hush" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_server_that_is_away_is_a_store_error_without_the_password(
    monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer
) -> None:
    url = f"postgresql+asyncpg://arriero:hush-hush@127.0.0.1:{postgres.port}/postgres"
    with pytest.raises(StoreError) as wrong_password:
        await Database(url).migrate()
    with pytest.raises(StoreError) as no_server:
        await Database("postgresql+asyncpg://arriero:hush-hush@127.0.0.1:9/postgres").migrate()
    for error in (wrong_password, no_server):
        assert "hush-hush" not in str(error.value)
    assert "user or password is wrong" in str(wrong_password.value)
    assert "cannot be reached" in str(no_server.value)


def test_variable_that_is_not_set_is_named() -> None:
    settings = StoreSettings.model_validate(
        {"database": {"kind": "postgresql", "url": "env:NO_SUCH_VARIABLE"}}
    )
    with pytest.raises(ConfigError, match="the variable NO_SUCH_VARIABLE is not set here"):
        database_url(settings)


async def test_file_is_for_its_owner_only(tmp_path: Any) -> None:
    path = tmp_path / "new" / "store.db"
    settings = StoreSettings(database=SqliteStore(path=str(path)))
    database = Database(database_url(settings))
    await database.migrate()
    await database.close()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
