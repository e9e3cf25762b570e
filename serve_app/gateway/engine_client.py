"""vLLM's EngineClient over engines elsewhere.

vLLM's AsyncLLM turns inputs into engine requests, and step outputs into text, log-probabilities
and stop strings. All of that stays, here in the gateway. Only what it calls its engine core is
replaced: requests go to a `ModelClient`, which asks the router where to. So nothing of a request's
visible state lives in an engine, and one that dies takes none of it along.

Written against vLLM 0.32 (vllm/v1/engine/async_llm.py); `tests/unit/test_engine_client.py` checks
that the attributes set here are those which AsyncLLM's own constructor sets.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

from vllm.config import VllmConfig
from vllm.renderers import renderer_from_config
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import OutputProcessor

from serve_app.gateway.identity import seal_renderer, seal_request
from serve_app.gateway.input_bounds import BoundedInputProcessor
from serve_app.gateway.meter import current_meter
from serve_app.gateway.model_client import ModelClient


class RemoteCore:
    """What AsyncLLM calls on its engine core, answered by a `ModelClient`."""

    def __init__(self, client: ModelClient, tasks: tuple[SupportedTask, ...]) -> None:
        self._client = client
        self._tasks = tasks
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        # Engines come and go; the model as a whole is never "dead" to its front end.
        self.resources = SimpleNamespace(engine_dead=False)
        self.sink: RemoteEngineClient

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        """What the model can do."""
        return self._tasks

    async def get_output_async(self) -> EngineCoreOutputs:
        """The next step's outputs of any engine."""
        return await self._outputs.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Queues a request; does not wait for its turn."""
        meter = current_meter.get()
        seal_request(request, meter.caller)
        self._client.send(request, meter, self.sink)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Ends requests wherever they are."""
        self.abort(request_ids)

    def abort(self, request_ids: list[str]) -> None:
        """Same, at once."""
        if request_ids:
            self._client.abort(request_ids)

    def put(self, outputs: EngineCoreOutputs) -> None:
        """Takes outputs for `get_output_async`."""
        self._outputs.put_nowait(outputs)

    def shutdown(self, timeout: float | None = None) -> None:
        """Nothing to end: the connections belong to the `ModelClient`."""


_SHORT_CHARS = 4096
"""A prompt of this length takes well below a millisecond to tokenize."""


def _tokenize_short_prompts_at_once(renderer: Any) -> None:
    """Spares short prompts the way to vLLM's tokenizer thread and back.

    The thread competes with the event loop for the interpreter: for a short prompt that costs more
    than tokenizing it.
    """
    in_thread = renderer._tokenize_prompt_async

    async def tokenize(prompt: Any, params: Any) -> Any:
        if len(prompt["prompt"]) <= _SHORT_CHARS:
            return renderer._tokenize_prompt(prompt, params)
        return await in_thread(prompt, params)

    renderer._tokenize_prompt_async = tokenize


class RemoteEngineClient(AsyncLLM):
    """AsyncLLM without an engine of its own. Must be made on the event loop that uses it."""

    def __init__(
        self, config: VllmConfig, tasks: tuple[SupportedTask, ...], client: ModelClient
    ) -> None:
        self.vllm_config = config
        self.model_config = config.model_config
        self.scheduler_config = config.scheduler_config
        self.observability_config = config.observability_config
        self.log_requests = False
        self.log_stats = False
        self.logger_manager = None
        self.admission_stats = None
        self.renderer = renderer_from_config(config)
        seal_renderer(self.renderer)
        _tokenize_short_prompts_at_once(self.renderer)
        self.input_processor = BoundedInputProcessor(config, self.renderer)
        self.output_processor = OutputProcessor(
            self.renderer.tokenizer,
            log_stats=False,
            stream_interval=config.scheduler_config.stream_interval,
        )
        self._remote = RemoteCore(client, tasks)
        self._remote.sink = self
        self.engine_core: Any = self._remote
        self.output_handler = None
        self.profiler = None
        self._frontend_profiler_injected = False
        self._frontend_profiler_worker_name = ""
        self._profile_lock = asyncio.Lock()
        self._profile_session_guard_enabled = False
        self._profile_session_active = False
        self._elastic_ep_lock = asyncio.Lock()
        self._client_count = 1
        self._run_output_handler()  # type: ignore[no-untyped-call]  # vLLM's

    def take(self, outputs: EngineCoreOutputs) -> None:
        """Takes one step's outputs (`Sink`)."""
        self._remote.put(outputs)

    def fail(self, request_id: str, error: Exception) -> None:
        """Ends one request, and its siblings where `n` > 1, with an error (`Sink`)."""
        state = self.output_processor.request_states.get(request_id)
        if state is None:
            return
        whole = state.parent_req.request_id if state.parent_req is not None else request_id
        self._remote.abort(self.output_processor.abort_requests([whole], internal=True))
        if state.queue is not None:
            state.queue.put(error)
