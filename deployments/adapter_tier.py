"""The adapters in an engine's host memory: brought beside the steps, and let go when others come.

    on disk (the store) ─→ read into memory ─→ held for requests ─→ forgotten, or pushed out

Only taking one into host memory and forgetting it touch the step loop: between two steps, one at a
time. What is pushed out is `serve_app.policy.adapter_tier`'s choice. Belongs to the engine's loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import msgspec

from deployments.adapter_reading import DamagedCopyError, discard, read_ahead
from deployments.engine_metrics import AdapterSeries
from deployments.engine_server import Core
from deployments.tier_entry import Adapter
from serve_app.adapter_counts import AdapterTally
from serve_app.messages import AdapterRef, AdapterReport
from serve_app.names import TenantId
from serve_app.policy.adapter_tier import choose_victim

logger = logging.getLogger(__name__)

_FAILURES = 64
"""Failures that are remembered and reported."""


class AdapterFiles(Protocol):
    """Brings adapters to this machine's disk."""

    async def ensure(self, ref: AdapterRef) -> Path:
        """Returns the local folder of an adapter, checked and fit for this model, and holds it.

        Raises:
            Exception: It cannot be had; the text says why.
        """

    def release(self, ref: AdapterRef) -> None:
        """Gives back one hold of `ensure`."""

    async def forget(self, ref: AdapterRef) -> None:
        """Removes an adapter from this machine's disk, unless somebody holds it."""

    async def warm_up(self) -> None:
        """Gets ready, so that the first `ensure` does not have to."""

    async def close(self) -> None:
        """Ends what is under way; gives everything back."""


class AdapterTier:
    """Host memory of one engine.

    Args:
        files: Where adapters come from.
        loop: The engine's.
        floor: Adapters that other tenants' leave to each tenant.
        series: Counts those that come and go.
        on_settled: Called when an adapter has come, or has failed to.
    """

    def __init__(
        self,
        files: AdapterFiles,
        loop: asyncio.AbstractEventLoop,
        floor: int,
        series: AdapterSeries,
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = files
        self._loop = loop
        self._floor = floor
        self._series = series
        self._on_settled = on_settled
        self._core: Core
        self._adapters: dict[int, Adapter] = {}
        self._failures: dict[int, str] = {}
        self._tally = AdapterTally()
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._unused = asyncio.Event()

    def attach(self, core: Core) -> None:
        """Names the core, once it is built."""
        self._core = core

    def warm_up(self) -> None:
        """Has what brings adapters ready before the first one is asked for."""
        self._start(self._files.warm_up())

    def find(self, ref: AdapterRef, tenant: TenantId) -> Adapter:
        """Returns an adapter as it is known here, from now on."""
        return self._adapters.setdefault(ref.id, Adapter(ref, tenant))

    def drop(self, refs: Iterable[AdapterRef]) -> None:
        """Lets adapters go as soon as no request uses them, from the disk, too."""
        for ref in refs:
            adapter = self._adapters.get(ref.id)
            if adapter is None:
                self._start(self._files.forget(ref))
            else:
                adapter.is_unwanted = True
                self._drop_if_unwanted(adapter)

    def leave(self, adapter: Adapter, request_id: str) -> None:
        """Takes note that a request needs an adapter no more."""
        adapter.requests.discard(request_id)
        self._drop_if_unwanted(adapter)
        self._unused.set()

    def report(self) -> AdapterReport:
        """Which adapters are where."""
        return AdapterReport(
            slots=self._core.adapter_slots,
            capacity=self._core.adapter_capacity,
            on_disk=sorted(a.ref.id for a in self._adapters.values() if a.folder is not None),
            in_memory=sorted(a.ref.id for a in self._adapters.values() if a.is_held),
            active=sorted(self._core.active_adapters()),
            failures=dict(self._failures),
            tally=self._tally,
            coming=sorted(
                a.ref.id for a in self._adapters.values() if a.loading is not None and not a.is_held
            ),
        )

    async def close(self) -> None:
        """Ends what is under way. Called when the core has stopped."""
        for task in self._tasks:
            task.cancel()
        await self._files.close()

    def begin_load(self, adapter: Adapter) -> None:
        """Brings an adapter into memory, unless it is there or coming; see `Adapter.loading`."""
        if adapter.is_held or adapter.loading is not None:
            return
        adapter.loading = self._start(self._load(adapter))
        adapter.loading.add_done_callback(lambda task: self._settle_load(adapter, task))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, adapter: Adapter) -> None:
        began_s = time.monotonic()
        adapter.folder = await self._files.ensure(adapter.ref)
        fetch_s = time.monotonic() - began_s
        # Not one at a time: who may push out nothing now must not hold up those who may.
        await self._make_room(adapter.tenant)
        adapter.takes_room = True
        try:
            async with self._one_at_a_time:
                read_s = await self._read(adapter)
                # The core does things in order: neither needs to wait for the other, or for room.
                hold = self._core.hold_adapter(adapter.ref.id, str(adapter.folder))
                activation = self._core.activate_adapter(adapter.ref.id)
            stall_s = await asyncio.wrap_future(hold)
        finally:
            discard(adapter.ref.id)
        # No request may run before all of it is in the slot.
        stall_s += await self._wait_for_slot(adapter, activation)
        adapter.is_held = True
        adapter.load_s = read_s + stall_s
        took_s = time.monotonic() - began_s
        self._series.load(took_s)
        self._count(loads=1, fetch_s=fetch_s, hold_s=took_s - fetch_s, stall_s=stall_s)

    async def _read(self, adapter: Adapter) -> float:
        """Brings the weights into memory, so that the step loop waits for no disk; says how long.

        A copy that turns out to be damaged is brought anew, once.
        """
        began_s = time.monotonic()
        assert adapter.folder is not None
        try:
            await asyncio.to_thread(read_ahead, adapter.ref.id, adapter.folder)
        except (DamagedCopyError, msgspec.MsgspecError) as error:
            logger.warning("Adapter %s: %s", adapter.ref.name, error)
            self._files.release(adapter.ref)
            adapter.folder = None
            await self._files.forget(adapter.ref)
            adapter.folder = await self._files.ensure(adapter.ref)
            await asyncio.to_thread(read_ahead, adapter.ref.id, adapter.folder)
        return time.monotonic() - began_s

    async def _wait_for_slot(self, adapter: Adapter, activation: Future[float]) -> float:
        """Returns for how long steps waited."""
        try:
            return await asyncio.wrap_future(activation)
        except Exception as error:  # The step that needs it will try again.
            logger.warning("Adapter %s has no slot yet: %s", adapter.ref.name, error)
            return 0.0

    def _count(self, **more: float) -> None:
        known = {name: getattr(self._tally, name) + n for name, n in more.items()}
        self._tally = msgspec.structs.replace(self._tally, **known)

    def _settle_load(self, adapter: Adapter, task: asyncio.Task[None]) -> None:
        adapter.loading, adapter.takes_room = None, adapter.is_held
        self._unused.set()
        if task.cancelled():  # All of it ends.
            return
        self._note_end(adapter, task)
        self._on_settled()

    def _note_end(self, adapter: Adapter, task: asyncio.Task[None]) -> None:
        error = task.exception()
        if error is None:
            self._failures.pop(adapter.ref.id, None)
            self._drop_if_unwanted(adapter)
            return
        logger.warning("Adapter %s could not be loaded: %s", adapter.ref.name, error)
        self._series.fail()
        self._adapters.pop(adapter.ref.id, None)
        self._failures[adapter.ref.id] = str(error)
        while len(self._failures) > _FAILURES:
            del self._failures[next(iter(self._failures))]
        if adapter.folder is not None:
            self._files.release(adapter.ref)

    async def _make_room(self, newcomer: TenantId) -> None:
        capacity = self._core.adapter_capacity
        while sum(a.takes_room for a in self._adapters.values()) >= capacity:
            self._unused.clear()
            now_s = time.monotonic()
            held = [a.view(now_s) for a in self._adapters.values() if a.is_held]
            victim = choose_victim(held, newcomer, capacity, self._floor)
            if victim is None:
                await self._unused.wait()
            else:
                self._series.evict()
                self._count(evictions=1)
                adapter = self._adapters[victim.id]
                self._start(self._wait_until_gone(adapter, self._let_go(adapter)))

    def _drop_if_unwanted(self, adapter: Adapter) -> None:
        if adapter.is_unwanted and not adapter.requests and adapter.is_held:
            adapter.loading = self._start(self._drop(adapter))

    async def _drop(self, adapter: Adapter) -> None:
        async with self._one_at_a_time:
            if adapter.is_held and not adapter.requests:
                await self._wait_until_gone(adapter, self._let_go(adapter))
                await self._files.forget(adapter.ref)

    def _let_go(self, adapter: Adapter) -> Future[float]:
        """Has the core drop one. At once: a request may come for it at any moment."""
        # Forgotten first: who asks for it while it goes, brings it again.
        adapter.is_held = adapter.takes_room = False
        del self._adapters[adapter.ref.id]
        self._unused.set()
        return self._core.drop_adapter(adapter.ref.id)

    async def _wait_until_gone(self, adapter: Adapter, drop: Future[float]) -> None:
        await asyncio.wrap_future(drop)
        self._files.release(adapter.ref)
