"""A gateway's adapters: whether a tenant may use one, and which version of it a request gets.

The first request for an adapter has it fetched and checked; the version found is written to the
store, so that every gateway gives it the same id. Later requests take what is known, and now and
then one has the source looked at again beside it.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.adapter_store import AdapterStore, wait_shared
from deployments.adapter_workers import AdapterWorkers
from serve_app.adapter_registry import Adapter, AdapterRegistry, AdapterVersion, ref_of
from serve_app.catalog import Caller
from serve_app.config_adapters import AdaptersSettings
from serve_app.errors import AdapterAwayError, AdapterRefusedError
from serve_app.gateway.accounts import Accounts
from serve_app.gateway.adapter_answers import answer_refusal, away_error
from serve_app.gateway.adapter_lookups import Lookups
from serve_app.gateway.error_body import ApiError
from serve_app.messages import AdapterRef
from serve_app.names import ModelName
from serve_app.policy.adapter_shapes import ModelShape
from serve_app.store.adapters import AdapterRepository

logger = logging.getLogger(__name__)

_DOUBT_EVERY_S = 1.0
"""Looks at one source, however many requests fail."""


@dataclass(frozen=True)
class AdapterBase:
    """What a base model's adapters must fit.

    Attributes:
        shape: None where adapters of such a model cannot be checked.
        max_rank: The engine's; 0 where it takes no adapters.
        kind: The model's `model_type`, for texts.
    """

    shape: ModelShape | None
    max_rank: int
    kind: str


class GatewayAdapters:
    """Lives on the gateway's event loop.

    Args:
        accounts: The store, and the registry that follows it.
        on_gone: Called with versions that no new request gets.
    """

    def __init__(self, accounts: Accounts, on_gone: Callable[[list[AdapterRef]], None]) -> None:
        self._accounts = accounts
        self._on_gone = on_gone
        self.registry.on_gone = self._forget
        self._settings = AdaptersSettings()
        self._workers: AdapterWorkers | None = None
        self._bases: dict[ModelName, AdapterBase] = {}
        self._stores: dict[ModelName, AdapterStore] = {}
        self._learning: dict[tuple[str, str], asyncio.Task[AdapterVersion]] = {}
        self._lookups = Lookups()
        self._n_imports, self._import_s = 0, 0.0
        self._looked_s: dict[int, float] = {}
        self._looking: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def registry(self) -> AdapterRegistry:
        """Which adapters there are."""
        return self._accounts.catalog.adapters

    def configure(self, settings: AdaptersSettings) -> None:
        """Takes new settings."""
        self.registry.declare(settings)
        if settings.cache != self._settings.cache:
            self._drop_stores()
        self._settings = settings
        # A tenant that asks for many new adapters leaves import workers to others.
        self._lookups.places = max(1, settings.cache.workers // 2)

    def counts(self) -> dict[str, float]:
        """What looking at sources has cost, for `/ready`."""
        return {"imports": self._n_imports, "import_s": self._import_s}

    def introduce(self, model: ModelName, base: AdapterBase) -> None:
        """Hears what a model's engines are like, each time that they are configured anew."""
        if self._bases.get(model) != base:
            self._bases[model] = base
            store = self._stores.pop(model, None)
            if store is not None:
                self._spawn(store.close())
            if base.shape is not None and base.max_rank > 0:
                self._spawn(self._find_workers().warm_up())

    async def resolve(self, adapter: Adapter, caller: Caller) -> AdapterRef:
        """Returns the version that a request gets.

        Raises:
            ApiError: 400 it cannot be served, and why; 503 it cannot be had now.
            AdapterRefusedError: There is no such adapter at its source.
        """
        version = self.registry.current(adapter)
        if version is None:
            version = await self._learn_for(adapter, caller)
        else:
            self._look_again(adapter, version)
        return ref_of(version, adapter.base)

    async def learn(self, adapter: Adapter) -> AdapterVersion:
        """Has an adapter fetched and checked, and notes its version. Many who ask share one try.

        Raises:
            AdapterRefusedError: There is none, or it cannot be served.
            AdapterAwayError: It cannot be had now.
            ApiError: 503; the model is not ready, or the store is away.
        """
        place = (adapter.name, adapter.source)
        task = self._learning.get(place)
        if task is None:
            task = asyncio.ensure_future(self._learn(adapter))
            self._learning[place] = task
            task.add_done_callback(lambda done: self._end(place, done))
        return await wait_shared(task)

    async def learn_anew(self, adapter: Adapter) -> AdapterVersion:
        """As `learn`, though it may have failed a moment ago: somebody says that it was mended.

        Of a family, one whose folder is gone ends. Nobody else ends it: a disk that is not
        mounted looks the same.
        """
        self._store_of(adapter).forget_failure(adapter.source)
        try:
            return await self.learn(adapter)
        except AdapterRefusedError as error:
            version = self.registry.current(adapter)
            if version is None or adapter.origin != "family" or not error.is_missing:
                raise
            async with self._accounts.change() as session:
                await AdapterRepository(session).end_version(version)
            raise AdapterRefusedError(f"{error} Requests get it no more.", True) from None

    async def examine(self, adapter: Adapter) -> dict[str, Any]:
        """Fetches and checks an adapter that is to be registered; returns what was found.

        Returns:
            What `AdapterRepository.note_version` takes. Raises as `learn`.
        """
        self._store_of(adapter).forget_failure(adapter.source)
        return await self._examine(adapter)

    def doubt(self, ref: AdapterRef) -> None:
        """Has a source looked at soon, as an engine could not have what was known of it.

        It may have another version by now, while no copy of this one is left.
        """
        adapter = self.registry.find(ref.name)
        version = None if adapter is None else self.registry.current(adapter)
        if adapter is None or version is None or version.id != ref.id:
            return
        if time.monotonic() >= self._looked_s.get(ref.id, -math.inf) + _DOUBT_EVERY_S:
            self._looked_s[ref.id] = -math.inf
            self._look_again(adapter, version)

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [*self._learning.values(), *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        self._drop_stores()
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)

    # --- learning ---------------------------------------------------------------------------

    async def _learn_for(self, adapter: Adapter, caller: Caller) -> AdapterVersion:
        try:
            async with self._lookups.place_of(caller.tenant_id):
                return await self.learn(adapter)
        except AdapterRefusedError as error:
            answer_refusal(adapter, error)
        except AdapterAwayError as error:
            raise away_error(adapter, error.retry_after_s) from None

    async def _learn(self, adapter: Adapter) -> AdapterVersion:
        found = await self._examine(adapter)
        async with self._accounts.change() as session:
            version = await AdapterRepository(session).note_version(adapter, **found)
        self._looked_s[version.id] = time.monotonic()
        logger.info("Adapter %s is version %d (%s).", adapter.name, version.id, version.content)
        return version

    async def _examine(self, adapter: Adapter) -> dict[str, Any]:
        began_s = time.monotonic()
        facts = await self._store_of(adapter).examine(adapter.source)
        self._n_imports += 1
        self._import_s += time.monotonic() - began_s
        return {
            "content": facts.version,
            "mark": facts.mark,
            "facts": {"rank": facts.rank, "modules": facts.modules, "n_bytes": facts.n_bytes},
            "now_s": time.time(),
        }

    def _end(self, place: tuple[str, str], task: asyncio.Task[AdapterVersion]) -> None:
        self._learning.pop(place, None)
        if not task.cancelled():
            task.exception()  # Whoever waited was told; perhaps nobody does any more.

    # --- new versions -----------------------------------------------------------------------

    def _look_again(self, adapter: Adapter, version: AdapterVersion) -> None:
        """One at a time: looking at many sources must not hold up what requests wait for."""
        now_s = time.monotonic()
        looked_s = self._looked_s.setdefault(version.id, now_s)
        if now_s < looked_s + self._settings.recheck_s or self._looking is not None:
            return
        self._looked_s[version.id] = now_s
        self._looking = asyncio.ensure_future(self._look(adapter, version))
        self._looking.add_done_callback(self._end_looking)

    def _end_looking(self, task: asyncio.Task[None]) -> None:
        self._looking = None

    async def _look(self, adapter: Adapter, version: AdapterVersion) -> None:
        try:
            mark = await self._store_of(adapter).look(adapter.source)
            if mark != version.mark:
                await self.learn(adapter)
        except (AdapterRefusedError, AdapterAwayError, ApiError) as error:
            logger.warning("Adapter %s stays at version %d: %s", adapter.name, version.id, error)

    def _forget(self, refs: list[AdapterRef]) -> None:
        """Engines hear of it from the router; this node may have copies that none of them has."""
        self._on_gone(refs)
        for ref in refs:
            logger.info("Adapter %s: version %d is gone.", ref.name, ref.id)
            self._looked_s.pop(ref.id, None)
            store = self._stores.get(ref.base)
            if store is not None:
                self._spawn(store.forget(ref))

    # --- stores -----------------------------------------------------------------------------

    def _store_of(self, adapter: Adapter) -> AdapterStore:
        base = self._bases.get(adapter.base)
        if base is None:
            raise ApiError(
                503,
                f"The model {adapter.base!r} is not ready, so its adapters cannot be checked. "
                "Try again shortly; /ready shows its progress.",
                param="model",
                code="model_not_ready",
                retry_after_s=5.0,
            )
        if base.max_rank < 1:
            raise AdapterRefusedError(f"The engines of {adapter.base!r} take no adapters.")
        if base.shape is None:
            raise AdapterRefusedError(
                f"Adapters of a model of the kind {base.kind!r} cannot be checked, so none is "
                "served."
            )
        store = self._stores.get(adapter.base)
        if store is None:
            workers = self._find_workers()
            store = AdapterStore(self._settings.cache, base.shape, base.max_rank, workers)
            self._stores[adapter.base] = store
        return store

    def _find_workers(self) -> AdapterWorkers:
        if self._workers is None:
            self._workers = AdapterWorkers(self._settings.cache)
        return self._workers

    def _drop_stores(self) -> None:
        for store in self._stores.values():
            self._spawn(store.close())
        self._stores.clear()
        if self._workers is not None:
            self._spawn(self._workers.close())
            self._workers = None

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
