"""A gateway's tenants, keys and usage: what it knows of them, and what it writes down."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.catalog import Catalog
from serve_app.config import Settings
from serve_app.config_records import RecordsSettings
from serve_app.config_store import StoreSettings, database_url, state_dir_of
from serve_app.errors import InternalError, StoreError
from serve_app.gateway.auth import Authenticator
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.fleet_costs import FleetCosts
from serve_app.gateway.open_usage import OpenUsage
from serve_app.names import KeyId, TenantId
from serve_app.store.catalog_watcher import CatalogWatcher
from serve_app.store.database import Database
from serve_app.store.keys import LAST_USED_STEP_S, KeyRepository
from serve_app.store.requests import Kind, delete_all, plan_retention
from serve_app.store.usage_recorder import UsageRecorder
from serve_app.store.usage_sink import DatabaseSink
from serve_app.usage import UsageRecord

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 5.0
_DELETE_EVERY_S = 600.0


class _Store:
    """One database in use, with what runs on it."""

    def __init__(self, settings: StoreSettings, catalog: Catalog) -> None:
        self.settings = settings
        self.database = Database(database_url(settings))
        self.watcher = CatalogWatcher(self.database, catalog)
        folder = state_dir_of(settings) / "usage"
        self.recorder = UsageRecorder(folder, settings, DatabaseSink(self.database))
        self.watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.watching = asyncio.create_task(self.watcher.run(), name="catalog")
        self.recorder.start()

    def stop_watching(self) -> None:
        if self.watching is not None:
            self.watching.cancel()

    async def close(self) -> None:
        self.stop_watching()
        if self.watching is not None:
            await asyncio.gather(self.watching, return_exceptions=True)
        await self.recorder.close()
        await self.database.close()


class Accounts:
    """Tenants, keys and usage of one gateway. Lives on the gateway's event loop."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.authenticator = Authenticator(self.catalog, needs_keys=True)
        self.fleet_costs: FleetCosts | None = None
        self.open_usage = OpenUsage(self._note_open)
        """What is used while it is used."""
        self._store: _Store | None = None
        self._noting: asyncio.Task[None] | None = None
        self._deleting: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._records = RecordsSettings()
        self._closing: set[asyncio.Task[None]] = set()

    def configure(self, settings: Settings) -> None:
        """Takes new settings. Requests that run are not touched.

        Raises:
            ConfigError: The store's URL is not where the settings say.
            StoreError: The store's URL cannot be read.
        """
        if self._store is None or self._store.settings != settings.store:
            self._replace_store(settings.store)
        self.fleet_costs = FleetCosts.of(settings)
        self.catalog.declare(settings.tenants)
        self.authenticator.needs_keys = settings.auth.kind == "keys"
        self._records = settings.records
        if self._noting is None:
            self._noting = asyncio.create_task(self._keep_noting(), name="key-use")
            self._deleting = asyncio.create_task(self._keep_deleting(), name="retention")
            self._writing = asyncio.create_task(self.open_usage.run(), name="open usage")

    def _replace_store(self, settings: StoreSettings) -> None:
        fresh = _Store(settings, self.catalog)
        old, self._store = self._store, fresh
        if old is not None:
            old.stop_watching()
            self.catalog.version = -1  # Versions of different stores have nothing in common.
            closing = asyncio.create_task(_retire(old), name="close store")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        fresh.start()

    @property
    def recorder(self) -> UsageRecorder:
        """Where the usage of requests is recorded."""
        return self._open_store().recorder

    @property
    def problem(self) -> str:
        """What is wrong with the store or the recording of usage; empty when nothing is."""
        store = self._open_store()
        texts = dict.fromkeys((store.watcher.problem, store.recorder.state.problem))
        return "; ".join(text for text in texts if text)

    @property
    def state(self) -> Literal["loading", "ok", "degraded"]:
        """One word on it. While it loads, keys of the store are not known yet."""
        if self.problem:
            return "degraded"
        return "ok" if self.catalog.is_loaded else "loading"

    def check_room(self) -> None:
        """Refuses a request whose usage might not be recorded.

        Raises:
            ApiError: 503.
        """
        if not self.recorder.has_room:
            raise ApiError(
                503,
                "Usage cannot be recorded at present, so no request is taken. Try again later.",
                code="usage_not_recorded",
                retry_after_s=_RETRY_AFTER_S,
            )

    def check_health(self) -> None:
        """Raises InternalError when a part has stopped: a new gateway is the remedy."""
        store = self._open_store()
        store.recorder.check_health()
        if store.watching is not None and store.watching.done():
            raise InternalError("Watching tenants and keys has stopped.")

    async def refresh(self) -> None:
        """Learns at once what was changed elsewhere. Raises ApiError: 503 the store is away."""
        with _answered():
            await self._open_store().watcher.refresh()

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that changes nothing. Raises ApiError: 503 the store is away."""
        with _answered():
            async with self._open_store().database.read() as session:
                yield session

    @contextlib.asynccontextmanager
    async def change(self) -> AsyncIterator[AsyncSession]:
        """A session whose changes this gateway knows at its end. Raises ApiError: 503."""
        store = self._open_store()
        with _answered():
            async with store.database.write() as session:
                yield session
            await store.watcher.refresh()

    async def delete_records(
        self, kind: Kind, tenant_id: TenantId | None, before_s: float | None
    ) -> int:
        """Deletes texts, or records without texts; returns how many. Others write in between.

        Raises:
            ApiError: 503 the store is away; what was deleted by then stays so.
        """
        with _answered():
            return await delete_all(self._open_store().database, kind, tenant_id, before_s)

    async def close(self) -> None:
        """Writes down what is left, and ends everything."""
        for task in (self._noting, self._deleting, self._writing):
            if task is not None:
                task.cancel()
        if self._store is not None:
            await self.open_usage.write()
            with contextlib.suppress(StoreError):
                await self._note_use(self._store)
            await self._store.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _note_open(self, records: Sequence[UsageRecord]) -> None:
        await self.recorder.note_open(records)

    async def _keep_noting(self) -> None:
        while True:
            await asyncio.sleep(LAST_USED_STEP_S)
            with contextlib.suppress(StoreError):  # The watcher says that the store is away.
                await self._note_use(self._open_store())

    async def _keep_deleting(self) -> None:
        """Every gateway does; what another has deleted is not there."""
        while True:
            await asyncio.sleep(_DELETE_EVERY_S)
            with contextlib.suppress(StoreError):
                for kind, before_s in plan_retention(self._records):
                    await delete_all(self._open_store().database, kind, None, before_s)

    async def _note_use(self, store: _Store) -> None:
        used: dict[KeyId, float] = self.authenticator.take_used()
        if used:
            async with store.database.write() as session:
                await KeyRepository(session).note_use(used)

    def _open_store(self) -> _Store:
        assert self._store is not None, "configure() comes first"
        return self._store


async def _retire(store: _Store) -> None:
    """Closes a store that another one follows, where what runs will be recorded."""
    await store.recorder.note_open(())
    await store.close()


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        logger.error("%s", error)
        raise ApiError(
            503,
            "The store of tenants, keys and usage does not answer at present. Try again later.",
            code="store_unavailable",
            retry_after_s=_RETRY_AFTER_S,
        ) from None
