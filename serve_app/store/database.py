"""A connection to the database, whichever kind it is, with its tables in place.

What a driver says of an error may repeat the values of a row, so its text goes no further than
here: callers see a `StoreError` that says what kind of error it was.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from filelock import FileLock
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from serve_app.errors import StoreError, StoreRefusedError

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x41525249
"""Any number that no other user of the same PostgreSQL database takes."""
_BUSY_S = 10.0
_CONNECT_S = 10.0
_ON_WRITE = "arriero_write"


class Database:
    """Sessions on the database. Belongs to the event loop that first uses it.

    Args:
        url: SQLAlchemy's form, as `config_store.database_url` gives it. May hold a password.

    Raises:
        StoreError: The URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
        except ArgumentError:
            raise StoreError("The database's URL cannot be read; check its form.") from None
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = self._make_engine()
        # A reader sees one state throughout, so that what it reads fits together; SQLite's always
        # do. Writers wait for one another instead of failing.
        isolation = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._reading = self._engine.execution_options(**isolation)
        self._writing = self._engine.execution_options(**{_ON_WRITE: True})

    @property
    def place(self) -> str:
        """Where it is, for people; without user or password."""
        if self.is_sqlite:
            return str(self._url.database)
        return f"{self._url.host or 'localhost'}/{self._url.database}"

    async def migrate(self) -> None:
        """Makes or updates the tables. Any number of processes may do so at once.

        Raises:
            StoreError: The database cannot be reached, or is newer than this program.
        """
        with _translated(self.place):
            if self.is_sqlite:
                path = Path(self._url.database or "")
                await asyncio.to_thread(_prepare_file, path)
                lock = FileLock(f"{path}.lock", timeout=60, thread_local=False)
                # Acquired in a thread, as waiting for another process must not stop this loop.
                await asyncio.to_thread(lock.acquire)
                try:
                    await self._upgrade()
                finally:
                    lock.release()
            else:
                await self._upgrade()

    async def _upgrade(self) -> None:
        async with self._writing.begin() as connection:
            if not self.is_sqlite:
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK}
                )
            await connection.run_sync(_upgrade)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one state of the database and changes nothing.

        Raises:
            StoreError: The database cannot be reached or refuses.
        """
        with _translated(self.place):
            async with AsyncSession(self._reading, expire_on_commit=False) as session:
                yield session

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session that is committed at its end, and undone when an exception leaves it.

        Raises:
            StoreError: The database cannot be reached or refuses.
        """
        with _translated(self.place):
            async with (
                AsyncSession(self._writing, expire_on_commit=False) as session,
                session.begin(),
            ):
                yield session

    async def close(self) -> None:
        """Closes every connection."""
        with contextlib.suppress(SQLAlchemyError, OSError):
            await self._engine.dispose()

    def _make_engine(self) -> AsyncEngine:
        if not self.is_sqlite:
            return create_async_engine(
                self._url,
                pool_size=4,
                max_overflow=4,
                pool_pre_ping=True,
                pool_timeout=_CONNECT_S,
                hide_parameters=True,
                connect_args={"timeout": _CONNECT_S, "command_timeout": 60.0},
            )
        engine = create_async_engine(self._url, pool_size=3, max_overflow=2, hide_parameters=True)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine


def _prepare_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Only its owner may read who the tenants are.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Transactions begin where `_begin_sqlite` says.
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # FULL: what was committed is still there after a power cut, as with PostgreSQL.
    cursor.execute("PRAGMA synchronous = FULL")
    # What is deleted is overwritten: prompts and answers that someone wanted gone.
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads and then writes fails when another one wrote in between, however
    # long it would wait. One that says at once that it will write waits its turn.
    writes = connection.get_execution_options().get(_ON_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextlib.contextmanager
def _translated(place: str) -> Iterator[None]:
    try:
        yield
    except (DataError, IntegrityError) as error:
        raise StoreRefusedError(f"The store ({place}) refused: {_kind_of(error)}.") from None
    except SQLAlchemyError as error:
        raise StoreError(f"The store ({place}) failed: {_kind_of(error)}.") from None
    except (OSError, TimeoutError) as error:
        raise StoreError(f"The store ({place}) cannot be reached: {_kind_of(error)}.") from None


def _kind_of(error: Exception) -> str:
    """What went wrong, in words that cannot hold a row's values."""
    cause = getattr(error, "orig", None)
    cause = getattr(cause, "__cause__", None) or cause
    name = type(cause if cause is not None else error).__name__
    return f"{name} ({_TEXT_OF[name]})" if name in _TEXT_OF else name


_TEXT_OF = {
    "OperationalError": "locked, full, or not readable",
    "UniqueViolationError": "such a row exists",
    "IntegrityError": "such a row exists, or a value is missing",
    "InvalidPasswordError": "user or password is wrong",
    "InvalidCatalogNameError": "there is no such database",
    "DiskFullError": "the disk is full",
}
