"""Lets a request into the core when its adapter is in host memory; it waits alone until then.

Stands between an engine's server and its core. Requests for the base model pass through. The others
wait for `deployments.adapter_tier`; when it fails, those that wait for that adapter end, each with
one error.

State belongs to the engine's event loop. `accept` and `abort` come from the server's thread and
`emit` from the core's; they leave word and return.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason

from deployments.adapter_tier import AdapterFiles, AdapterTier
from deployments.engine_metrics import AdapterSeries
from deployments.engine_server import Core
from deployments.tier_entry import Adapter
from serve_app.errors import ClientError
from serve_app.messages import AdapterRef, AdapterReport, Standing
from serve_app.names import TenantId

logger = logging.getLogger(__name__)

Emit = Callable[[int, EngineCoreOutputs], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the server hands over, to be kept until it can go on."""

    request: EngineCoreRequest
    standing: Standing
    produced: Sequence[int]


class AdapterGate:
    """A core that takes requests with adapters.

    Args:
        emit: Takes each step's outputs for one client.
        files: Where adapters come from.
        loop: The engine's.
        floor: Adapters in host memory that other tenants' leave to each tenant.
        timeout_s: Seconds after which a request whose adapter has not come fails.
        series: Counts adapters that come and go.
        on_settled: Called when an adapter has come, or has failed to.
    """

    def __init__(
        self,
        emit: Emit,
        files: AdapterFiles,
        loop: asyncio.AbstractEventLoop,
        floor: int,
        timeout_s: float,
        series: AdapterSeries,
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        self._emit = emit
        self._loop = loop
        self._timeout_s = timeout_s
        self._tier = AdapterTier(files, loop, floor, series, on_settled)
        self._core: Core
        self._users: dict[str, Adapter] = {}
        """By request, from its arrival to its end."""
        self._waiting: dict[str, asyncio.Task[None]] = {}

    def attach(self, core: Core) -> None:
        """Names the core, once it is built; its outputs must come to `emit`."""
        self._core = core
        self._tier.attach(core)

    # --- what the server and the core call, on their threads ---------------------------------

    def accept(
        self, request: EngineCoreRequest, standing: Standing, produced: Sequence[int] = ()
    ) -> None:
        """Takes a request; one with an adapter goes on when that is here."""
        if request.lora_request is None:
            self._core.accept(request, standing, produced)
        else:
            self._loop.call_soon_threadsafe(self._begin, _Entry(request, standing, produced))

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

    @property
    def n_waiting(self) -> int:
        """Requests whose adapters are still to come."""
        return len(self._waiting)

    # --- what the engine calls, on its loop --------------------------------------------------

    def warm_up(self) -> None:
        """Gets ready for the first adapter; called once the core is built."""
        self._tier.warm_up()

    def prepare(self, ref: AdapterRef, tenant: TenantId) -> None:
        """Brings an adapter into host memory before a request asks for it."""
        adapter = self._tier.find(ref, tenant)
        adapter.announce(time.monotonic())  # Else the next one to come would push it out.
        self._tier.begin_load(adapter)

    def drop(self, refs: Iterable[AdapterRef]) -> None:
        """Lets adapters go as soon as no request uses them."""
        self._tier.drop(refs)

    async def close(self) -> None:
        """Ends what is under way. Called when the core has stopped."""
        for task in self._waiting.values():
            task.cancel()
        await self._tier.close()

    def report(self) -> AdapterReport:
        """Which adapters are where."""
        return self._tier.report()

    # --- the life of a request ---------------------------------------------------------------

    def _begin(self, entry: _Entry) -> None:
        request = entry.request
        lora = request.lora_request
        assert lora is not None
        ref = AdapterRef.at(
            lora.lora_path,
            id=lora.lora_int_id,
            name=lora.lora_name,
            base=lora.base_model_name or "",
        )
        adapter = self._tier.find(ref, entry.standing.tenant)
        if (adapter.ref.name, adapter.ref.version) != (ref.name, ref.version):
            # It came from a cell with another database, which was taken for this one's.
            self._say_failed(request, ref.name, "its number is another one's here")
            return
        adapter.note_use(time.monotonic())
        adapter.requests.add(request.request_id)
        self._users[request.request_id] = adapter
        if adapter.is_held:
            self._hand_over(entry, adapter)
            return
        self._tier.begin_load(adapter)
        task = self._loop.create_task(self._wait_and_hand_over(entry, adapter))
        self._waiting[request.request_id] = task

    async def _wait_and_hand_over(self, entry: _Entry, adapter: Adapter) -> None:
        assert adapter.loading is not None
        request = entry.request
        try:
            # Not wait_for: it goes on if it is cancelled just when the adapter has come.
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(adapter.loading)
            self._hand_over(entry, adapter)
        except asyncio.CancelledError:
            raise
        except TimeoutError:
            self._fail(request, f"it was not loaded within {self._timeout_s:g} s")
        except ClientError as error:
            self._fail(request, str(error))
        except Exception:  # Was logged; what it says may be of places that are not the client's.
            self._fail(request, "this is not the request's fault; send it again later")
        finally:
            self._waiting.pop(request.request_id, None)

    def _hand_over(self, entry: _Entry, adapter: Adapter) -> None:
        # vLLM takes two adapters of one name for the same, so the name is the version's own id.
        ref = adapter.ref
        entry.request.lora_request = LoRARequest(str(ref.id), ref.id, str(adapter.folder))
        self._core.accept(entry.request, entry.standing, entry.produced)

    def _fail(self, request: EngineCoreRequest, reason: str) -> None:
        adapter = self._users[request.request_id]
        self._end([request.request_id])
        self._say_failed(request, adapter.ref.name, reason)

    def _say_failed(self, request: EngineCoreRequest, name: str, reason: str) -> None:
        text = f"The adapter {name!r} could not be loaded: {reason}"
        logger.warning("Request %s fails. %s", request.request_id, text)
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
                self._tier.leave(adapter, request_id)
