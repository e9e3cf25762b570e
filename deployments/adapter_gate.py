"""Lets a request into the core when its adapter is in host memory; it waits alone until then.

Stands between an engine's server and its core. Requests for the base model pass through. For the
others:

    accept ─→ on disk (the store) ─→ in the page cache ─→ in host memory ─→ core.accept
                │                        │                   │
                └────────────────────────┴───────────────────┴─→ one error, for those who wait

Only the last arrow touches the step loop: reading from the page cache and packing, between two
steps, one adapter at a time. What leaves host memory is `serve_app.policy.adapter_tier`'s choice.

State belongs to the engine's event loop. `accept` and `abort` come from the server's thread and
`emit` from the core's; they leave word and return.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason

from deployments.engine_server import Core
from serve_app.messages import AdapterRef, AdapterReport, Standing
from serve_app.names import TenantId
from serve_app.policy.adapter_tier import Held, choose_victim

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_HALF_LIFE_S = 300.0
"""After which an adapter's use counts half when it is decided which one leaves."""
_FAILURES = 64
"""Failures that are remembered and reported."""

Emit = Callable[[int, EngineCoreOutputs], None]


class AdapterFiles(Protocol):
    """Brings adapters to this machine's disk."""

    async def ensure(self, ref: AdapterRef) -> Path:
        """Returns the local folder of an adapter, checked and fit for this model, and holds it.

        Raises:
            Exception: It cannot be had; the text says why.
        """

    def release(self, ref: AdapterRef) -> None:
        """Gives back one hold of `ensure`."""

    async def close(self) -> None:
        """Ends what is under way; gives everything back."""


@dataclass(eq=False)
class _Adapter:
    ref: AdapterRef
    tenant: TenantId
    requests: set[str] = field(default_factory=set)
    """That wait for it or use it."""
    folder: Path | None = None
    """On disk, while it is held there."""
    is_held: bool = False
    """Whether it is in host memory."""
    is_unwanted: bool = False
    loading: asyncio.Task[None] | None = None
    load_s: float = 0.0
    uses: float = 0.0
    used_s: float = 0.0

    def note_use(self, now_s: float) -> None:
        self.uses = 1.0 + self.uses_at(now_s)
        self.used_s = now_s

    def uses_at(self, now_s: float) -> float:
        return float(self.uses * 0.5 ** ((now_s - self.used_s) / _HALF_LIFE_S))


class AdapterGate:
    """A core that takes requests with adapters.

    Args:
        emit: Takes each step's outputs for one client.
        files: Where adapters come from.
        loop: The engine's.
        floor: Adapters in host memory that other tenants' leave to each tenant.
        timeout_s: Seconds after which a request whose adapter has not come fails.
    """

    def __init__(
        self,
        emit: Emit,
        files: AdapterFiles,
        loop: asyncio.AbstractEventLoop,
        floor: int,
        timeout_s: float,
    ) -> None:
        self._emit = emit
        self._files = files
        self._loop = loop
        self._floor = floor
        self._timeout_s = timeout_s
        self._core: Core
        self._adapters: dict[int, _Adapter] = {}
        self._users: dict[str, _Adapter] = {}
        """By request, from its arrival to its end."""
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[int, str] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._unused = asyncio.Event()

    def attach(self, core: Core) -> None:
        """Names the core, once it is built; its outputs must come to `emit`."""
        self._core = core

    # --- what the server and the core call, on their threads ---------------------------------

    def accept(self, request: EngineCoreRequest, standing: Standing) -> None:
        """Takes a request; one with an adapter goes on when that is here."""
        if request.lora_request is None:
            self._core.accept(request, standing)
        else:
            self._loop.call_soon_threadsafe(self._begin, request, standing)

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests, here or in the core."""
        self._core.abort(request_ids)
        self._loop.call_soon_threadsafe(self._abort, request_ids)

    def emit(self, client_index: int, outputs: EngineCoreOutputs) -> None:
        """Passes outputs on, and sees which requests have ended."""
        ended = [
            o.request_id for o in outputs.outputs if o.finished and o.request_id in self._users
        ]
        if ended:
            self._loop.call_soon_threadsafe(self._end, ended)
        self._emit(client_index, outputs)

    def counts(self) -> tuple[int, int, float]:
        """Requests running, requests waiting here or in the core, share of KV-cache blocks."""
        running, waiting, usage = self._core.counts()
        return running, waiting + len(self._waiting), usage

    # --- what the engine calls, on its loop --------------------------------------------------

    def prepare(self, ref: AdapterRef, tenant: TenantId) -> None:
        """Brings an adapter into host memory before a request asks for it."""
        self._begin_load(self._find(ref, tenant))

    def drop(self, adapter_ids: Iterable[int]) -> None:
        """Lets adapters go as soon as no request uses them."""
        for adapter_id in adapter_ids:
            adapter = self._adapters.get(adapter_id)
            if adapter is not None:
                adapter.is_unwanted = True
                self._drop_if_unwanted(adapter)

    async def close(self) -> None:
        """Ends what is under way. Called when the core has stopped."""
        for task in (*self._waiting.values(), *self._loads):
            task.cancel()
        await self._files.close()

    def report(self) -> AdapterReport:
        """Which adapters are where."""
        return AdapterReport(
            slots=self._core.adapter_slots,
            capacity=self._core.adapter_capacity,
            on_disk=sorted(a.ref.id for a in self._adapters.values() if a.folder is not None),
            in_memory=sorted(a.ref.id for a in self._adapters.values() if a.is_held),
            active=sorted(self._core.active_adapters()),
            failures=dict(self._failures),
        )

    # --- the life of a request ---------------------------------------------------------------

    def _begin(self, request: EngineCoreRequest, standing: Standing) -> None:
        lora = request.lora_request
        assert lora is not None
        ref = AdapterRef.at(
            lora.lora_path,
            id=lora.lora_int_id,
            name=lora.lora_name,
            base=lora.base_model_name or "",
        )
        adapter = self._find(ref, standing.tenant)
        adapter.note_use(time.monotonic())
        adapter.requests.add(request.request_id)
        self._users[request.request_id] = adapter
        if adapter.is_held:
            self._hand_over(request, standing, adapter)
            return
        self._begin_load(adapter)
        task = self._loop.create_task(self._wait_and_hand_over(request, standing, adapter))
        self._waiting[request.request_id] = task

    def _find(self, ref: AdapterRef, tenant: TenantId) -> _Adapter:
        return self._adapters.setdefault(ref.id, _Adapter(ref, tenant))

    async def _wait_and_hand_over(
        self, request: EngineCoreRequest, standing: Standing, adapter: _Adapter
    ) -> None:
        assert adapter.loading is not None
        try:
            await asyncio.wait_for(asyncio.shield(adapter.loading), self._timeout_s)
            self._hand_over(request, standing, adapter)
        except asyncio.CancelledError:
            raise
        except TimeoutError:
            self._fail(request, f"it was not loaded within {self._timeout_s:g} s")
        except Exception as error:
            self._fail(request, str(error))
        finally:
            self._waiting.pop(request.request_id, None)

    def _hand_over(self, request: EngineCoreRequest, standing: Standing, adapter: _Adapter) -> None:
        # vLLM takes two adapters of one name for the same, so the name is the version's own id.
        ref = adapter.ref
        request.lora_request = LoRARequest(str(ref.id), ref.id, str(adapter.folder))
        self._core.accept(request, standing)

    def _fail(self, request: EngineCoreRequest, reason: str) -> None:
        adapter = self._users[request.request_id]
        text = f"The adapter {adapter.ref.name!r} could not be loaded: {reason}"
        logger.warning("Request %s fails. %s", request.request_id, text)
        self._end([request.request_id])
        failed = EngineCoreOutput(
            request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=text
        )
        self._emit(request.client_index, EngineCoreOutputs(outputs=[failed]))

    def _abort(self, request_ids: Iterable[str]) -> None:
        known = [r for r in request_ids if r in self._users]
        for request_id in known:
            waiting = self._waiting.pop(request_id, None)
            if waiting is not None:
                waiting.cancel()
        if known:
            self._core.abort(known)  # Those that were handed over after the first word.
            self._end(known)

    def _end(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            adapter = self._users.pop(request_id, None)
            if adapter is not None:
                adapter.requests.discard(request_id)
                self._drop_if_unwanted(adapter)
        self._unused.set()

    # --- the life of an adapter --------------------------------------------------------------

    def _begin_load(self, adapter: _Adapter) -> None:
        if adapter.is_held or adapter.loading is not None:
            return
        adapter.loading = self._start(self._load(adapter))
        adapter.loading.add_done_callback(lambda task: self._settle_load(adapter, task))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)
        return task

    async def _load(self, adapter: _Adapter) -> None:
        began_s = time.monotonic()
        adapter.folder = await self._files.ensure(adapter.ref)
        await asyncio.to_thread(_read_through, adapter.folder)
        async with self._one_at_a_time:
            await self._make_room(adapter.tenant)
            hold = self._core.hold_adapter(adapter.ref.id, str(adapter.folder))
            await asyncio.wrap_future(hold)
        adapter.is_held = True
        adapter.load_s = time.monotonic() - began_s

    def _settle_load(self, adapter: _Adapter, task: asyncio.Task[None]) -> None:
        adapter.loading = None
        if task.cancelled():  # All of it ends.
            return
        error = task.exception()
        if error is None:
            self._failures.pop(adapter.ref.id, None)
            self._drop_if_unwanted(adapter)
            return
        logger.warning("Adapter %s could not be loaded: %s", adapter.ref.name, error)
        self._adapters.pop(adapter.ref.id, None)
        self._failures[adapter.ref.id] = str(error)
        while len(self._failures) > _FAILURES:
            del self._failures[next(iter(self._failures))]
        if adapter.folder is not None:
            self._files.release(adapter.ref)

    async def _make_room(self, newcomer: TenantId) -> None:
        capacity = self._core.adapter_capacity
        while len(held := [a for a in self._adapters.values() if a.is_held]) >= capacity:
            self._unused.clear()
            now_s = time.monotonic()
            views = [
                Held(a.ref.id, a.tenant, len(a.requests), a.uses_at(now_s), a.load_s, a.used_s)
                for a in held
            ]
            victim = choose_victim(views, newcomer, capacity, self._floor)
            if victim is None:
                await self._unused.wait()
            else:
                await self._let_go(self._adapters[victim.id])

    def _drop_if_unwanted(self, adapter: _Adapter) -> None:
        if adapter.is_unwanted and not adapter.requests and adapter.is_held:
            adapter.loading = self._start(self._drop(adapter))

    async def _drop(self, adapter: _Adapter) -> None:
        async with self._one_at_a_time:
            if adapter.is_held and not adapter.requests:
                await self._let_go(adapter)

    async def _let_go(self, adapter: _Adapter) -> None:
        # Forgotten first: who asks for it while it goes, brings it again.
        adapter.is_held = False
        del self._adapters[adapter.ref.id]
        await asyncio.wrap_future(self._core.drop_adapter(adapter.ref.id))
        self._files.release(adapter.ref)


def _read_through(folder: Path) -> None:
    """Brings the files into the page cache, so that the step loop does not wait for a disk."""
    buffer = bytearray(_CHUNK_BYTES)
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
