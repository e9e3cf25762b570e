"""The ledger with what it is told of tenants and keys: by the settings, and by the store."""

import asyncio

from deployments.ledger import Ledger
from deployments.ledger_journal import Journal
from serve_app.bank_link import BankLink
from serve_app.catalog import Catalog
from serve_app.catalog_limits import CatalogLimits
from serve_app.config import Settings
from serve_app.config_store import StoreSettings, database_url
from serve_app.errors import InternalError
from serve_app.messages import Endpoint
from serve_app.metrics import Metrics
from serve_app.store.catalog_watcher import CatalogWatcher
from serve_app.store.database import Database


class LedgerHost:
    """Runs a ledger over the catalog. A change of limits reaches it as it reaches gateways.

    It listens once it knows everyone's limits: before the store was read it would let anyone in.

    Args:
        settings: As gateways have them.
        journal: What the ledger must not forget.
        host: Address that gateways can reach this process at.
        metrics: Of this process.

    Raises:
        ConfigError: It is a cell's, and the cells' key is not in the environment.
    """

    def __init__(
        self, settings: Settings, journal: Journal, host: str, metrics: Metrics | None = None
    ) -> None:
        self._settings = settings
        self._catalog = Catalog()
        self._source = CatalogLimits(self._catalog)
        bank = None if settings.cell is None else BankLink(settings.cell)
        self._ledger = Ledger(
            self._source, settings.ledger, journal, host, metrics=metrics, bank=bank
        )
        self._knows_everyone = asyncio.Event()
        self._watched: StoreSettings | None = None
        self._database: Database | None = None
        self._watching: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> Endpoint:
        """Where gateways connect to.

        Raises:
            InternalError: It does not listen yet.
        """
        return self._ledger.endpoint

    def start(self) -> None:
        """Begins to run, in the background."""
        self.configure(self._settings)
        self._running = asyncio.create_task(self._run(), name="ledger")

    def configure(self, settings: Settings) -> None:
        """Takes new tenants, prices and another store. What runs is not touched."""
        self._settings = settings
        self._catalog.declare(settings.tenants)
        if settings.auth.kind == "off":
            self._knows_everyone.set()  # The settings declare whoever there is.
        self._source.prices = settings.prices
        self._source.forget()
        if self._watched != settings.store:
            self._watch(settings.store)

    def check_health(self) -> None:
        """Raises InternalError when a part has stopped: a new ledger is the remedy."""
        for task in (self._running, self._watching):
            if task is not None and task.done():
                raise InternalError(f"The ledger stopped: {task}")

    async def close(self) -> None:
        """Stops, and lets go of journal and store."""
        tasks = [task for task in (self._running, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)
        self._ledger.close()
        if self._database is not None:
            await self._database.close()

    async def _run(self) -> None:
        await self._knows_everyone.wait()
        await self._ledger.start()
        await self._ledger.run()

    def _watch(self, store: StoreSettings) -> None:
        self._watched = store
        self._drop_old_store()
        self._catalog.version = -1  # Versions of different stores have nothing in common.
        self._database = Database(database_url(store))
        watcher = CatalogWatcher(self._database, self._catalog, self._take_change)
        self._watching = asyncio.create_task(watcher.run(), name="catalog")

    def _take_change(self) -> None:
        self._source.forget()
        self._knows_everyone.set()

    def _drop_old_store(self) -> None:
        if self._database is None:
            return
        assert self._watching is not None, "they begin together"
        self._watching.cancel()
        closing = asyncio.create_task(self._database.close(), name="close store")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
