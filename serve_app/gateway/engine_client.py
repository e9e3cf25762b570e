"""vLLM's EngineClient over engines elsewhere.

vLLM's AsyncLLM turns inputs into engine requests, and step outputs into text, log-probabilities
and stop strings. All of that stays, here in the gateway. Only what it calls its engine core is
replaced: requests go to a `ModelClient`, which asks the router where to. So nothing of a request's
visible state lives in an engine, and one that dies takes none of it along.

Written against vLLM 0.32 (vllm/v1/engine/async_llm.py); `tests/unit/test_engine_client.py` checks
that the attributes set here are those which AsyncLLM's own constructor sets.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from vllm.config import VllmConfig
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.renderers import renderer_from_config
from vllm.sampling_params import SamplingParams
from vllm.tasks import SupportedTask
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from serve_app.gateway.deadline import Deadline, check_in_time
from serve_app.gateway.generation_book import GenerationBook
from serve_app.gateway.identity import seal_renderer, seal_request
from serve_app.gateway.input_bounds import BoundedInputProcessor
from serve_app.gateway.meter import Generation, current_meter
from serve_app.gateway.model_client import ModelClient
from serve_app.gateway.output_processors import CountingOutputProcessor, TracingOutputProcessor

Output = TypeVar("Output")
_TRACED = "as the gateway's"


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
        clock = meter.clock.send(time.monotonic())
        self._client.send(request, meter.caller, self.sink, clock)
        generation = meter.find(request.external_req_id or request.request_id)
        if request.prompt_token_ids is not None:
            generation.prompt_tokens = len(request.prompt_token_ids)
        self.sink.book.add(request.request_id, generation)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Ends requests wherever they are."""
        self.abort(request_ids)

    def abort(self, request_ids: list[str]) -> None:
        """Same, at once."""
        if request_ids:
            self._client.abort(request_ids)
            self.sink.book.drop(request_ids)

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
        self,
        config: VllmConfig,
        tasks: tuple[SupportedTask, ...],
        client: ModelClient,
        *,
        dialect: str = "",
        is_traced: bool = False,
    ) -> None:
        self.dialect = dialect
        self.vllm_config = config
        self.model_config = config.model_config
        self.scheduler_config = config.scheduler_config
        self.observability_config = config.observability_config
        # Here it only says whether there are spans; where they go `gateway.tracing` has set.
        self.observability_config.otlp_traces_endpoint = _TRACED if is_traced else None
        self.log_requests = False
        self.log_stats = False
        self.logger_manager = None
        self.admission_stats = None
        self.renderer = renderer_from_config(config)
        seal_renderer(self.renderer)
        _tokenize_short_prompts_at_once(self.renderer)
        self.input_processor = BoundedInputProcessor(config, self.renderer)
        self.book = GenerationBook()
        processor = TracingOutputProcessor if is_traced else CountingOutputProcessor
        self.output_processor = processor(
            self.renderer.tokenizer,
            log_stats=False,
            stream_interval=config.scheduler_config.stream_interval,
            tracing_enabled=is_traced,
        )
        self.output_processor.book = self.book
        self._client = client
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

    # --- requests ---------------------------------------------------------------------------

    def generate(
        self,
        prompt: Any,
        sampling_params: SamplingParams,
        request_id: str,
        *rest: Any,
        **options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """As AsyncLLM's, once the ledger consents; and counted.

        What is asked for is known before the first output is waited for, so that all prompts of
        an HTTP request are one reservation.
        """
        most = sampling_params.max_tokens or self.model_config.max_model_len
        each = (most,) * sampling_params.n
        generation = current_meter.get().plan(request_id, _count_prompt(prompt), each)

        def begin(cut_to: int | None) -> AsyncGenerator[RequestOutput, None]:
            if cut_to is not None and most > cut_to:
                sampling_params.max_tokens = cut_to
            return AsyncLLM.generate(self, prompt, sampling_params, request_id, *rest, **options)

        return self._run(generation, begin)

    def encode(
        self,
        prompt: Any,
        pooling_params: PoolingParams,
        request_id: str,
        *rest: Any,
        **options: Any,
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """As AsyncLLM's, once the ledger consents; and counted."""
        generation = current_meter.get().plan(request_id, _count_prompt(prompt), ())
        return self._run(
            generation,
            lambda _: AsyncLLM.encode(self, prompt, pooling_params, request_id, *rest, **options),
        )

    def _run(
        self,
        generation: Generation,
        begin: Callable[[int | None], AsyncGenerator[Output, None]],
    ) -> AsyncGenerator[Output, None]:
        meter = generation.meter
        if meter.is_limited or meter.deadline_s is not None:
            return self._run_bounded(generation, begin)
        return begin(None)

    async def _run_bounded(
        self,
        generation: Generation,
        begin: Callable[[int | None], AsyncGenerator[Output, None]],
    ) -> AsyncGenerator[Output, None]:
        generation.is_started = True
        deadline = Deadline(generation.meter, lambda error: self._end(generation, error))
        try:
            check_in_time(generation.meter, self._client.status, self.book.mean_tokens)
            async with deadline.bound():
                cut_to = await generation.admit()
            deadline.start()
            async with contextlib.aclosing(begin(cut_to)) as outputs:
                async for output in outputs:
                    yield output
        finally:
            deadline.stop()
            generation.end()

    def _end(self, generation: Generation, error: Exception) -> None:
        for request_id in list(generation.request_ids):
            self.fail(request_id, error)

    # --- what comes of them -----------------------------------------------------------------

    def begin(self, request_id: str) -> None:
        """Hears that a request is handed to an engine (`Sink`)."""
        self.book.begin(request_id)

    def take(self, outputs: EngineCoreOutputs) -> None:
        """Takes one step's outputs (`Sink`)."""
        self._remote.put(outputs)

    def fail(self, request_id: str, error: Exception) -> None:
        """Ends one request, and its siblings where `n` > 1, with an error (`Sink`)."""
        state = self.output_processor.request_states.get(request_id)
        if state is None:
            return
        error = self.book.note_failure(request_id, error)
        whole = state.parent_req.request_id if state.parent_req is not None else request_id
        self._remote.abort(self.output_processor.abort_requests([whole], internal=True))
        if state.queue is not None:
            state.queue.put(error)


def _count_prompt(prompt: Any) -> int:
    """Tokens of a prompt as the front end has rendered it; of embeddings, their positions."""
    if isinstance(prompt, EngineCoreRequest):
        return len(prompt.prompt_token_ids or ())
    tokens = prompt.get("prompt_token_ids")
    if tokens is None:
        tokens = prompt.get("prompt_embeds", ())
    return len(tokens) + len(prompt.get("encoder_prompt_token_ids", ()))
