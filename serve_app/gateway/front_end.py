"""vLLM's OpenAI application for one base model, run here over a remote engine.

Chat templates, tools, structured output, log-probabilities and every response form are vLLM's.
"""

import asyncio
import contextlib
from argparse import Namespace
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast, get_args

import cloudpickle
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp
from vllm.config import VllmConfig
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.lora.request import LoRARequest
from vllm.tasks import SupportedTask
from vllm.utils.argparse_utils import FlexibleArgumentParser

from deployments.model_source import fetch_model
from serve_app.config_model import FrontEndSettings, ModelSettings, Source
from serve_app.gateway.adapter_choice import current_adapter
from serve_app.gateway.adapters import AdapterBase
from serve_app.gateway.engine_client import RemoteEngineClient
from serve_app.gateway.error_body import from_validation, render
from serve_app.gateway.model_client import ModelClient
from serve_app.gateway.stumbles import answer_stumbles
from serve_app.names import ModelName
from serve_app.policy.adapter_shapes import Dtype, shape_of


def front_end_args(settings: FrontEndSettings, keep_alive_s: int = 0) -> Namespace:
    """VLLM's own defaults for its front end, with this model's settings over them."""
    parser = FlexibleArgumentParser()  # type: ignore[no-untyped-call]  # vLLM's
    args: Namespace = make_arg_parser(parser).parse_args([])
    for name, value in settings.model_dump().items():
        setattr(args, name, value)
    args.disable_fastapi_docs = True
    # A page on another site must not use a keyless gateway through its visitor's browser.
    args.allowed_origins = []
    args.disable_log_stats = True
    args.sse_keep_alive_interval = keep_alive_s
    args.enable_log_requests = False
    return args


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    payload, _ = render(from_validation(error.errors()), request.url.path)
    return Response(payload, 400, media_type="application/json")


def _drop_middleware(app: FastAPI) -> None:
    """Takes away what the gateway does itself (metrics), or does not want at all (CORS)."""
    unwanted = ("CORSMiddleware", "PrometheusInstrumentatorMiddleware")
    app.user_middleware = [
        middleware
        for middleware in app.user_middleware
        if getattr(middleware.cls, "__name__", "") not in unwanted
    ]


class _AdapterOfRequest(dict[str, LoRARequest]):
    """Knows one adapter: that which the gateway chose for the present request."""

    def __contains__(self, name: object) -> bool:
        choice = current_adapter.get()
        return choice is not None and choice.asked == name

    def __getitem__(self, name: str) -> LoRARequest:
        choice = current_adapter.get()
        if choice is None or choice.asked != name:
            raise KeyError(name)
        ref = choice.ref
        return LoRARequest(ref.name, ref.id, ref.place, base_model_name=ref.base)


class FrontEnd:
    """Parses requests for one model and renders its answers.

    Made anew when the engines' configuration changes; the old one stays until its last request
    has ended.
    """

    def __init__(
        self, model: ModelSettings, app: FastAPI, engine: RemoteEngineClient, client: ModelClient
    ) -> None:
        self.app: ASGIApp = app
        self.paths = frozenset(str(getattr(route, "path", "")) for route in app.routes)
        self.max_model_len: int = engine.model_config.max_model_len
        self._model = model
        self._engine = engine
        self._client = client
        self._n_inside = 0
        """Requests that are being read or answered here."""

    @classmethod
    async def build(
        cls,
        model: ModelSettings,
        payload: bytes,
        client: ModelClient,
        keep_alive_s: int,
        *,
        dialect: str = "",
        is_traced: bool = False,
    ) -> "FrontEnd":
        """Builds a front end from what an engine offered (`deployments.engine`).

        Loads the tokenizer, which takes a second or so.

        Args:
            model: The model's settings.
            payload: What the engine offered.
            client: Reaches the model's engines.
            keep_alive_s: Seconds of silence after which a stream says that it lives.
            dialect: What those engines understand; empty is not known.
            is_traced: Whether vLLM's own spans are wanted.
        """
        config: VllmConfig
        tasks: tuple[SupportedTask, ...]
        source: Source
        # The engine's own source: a change of it takes effect with the engines that have it.
        config, tasks, source = cloudpickle.loads(payload)
        folder = await asyncio.to_thread(fetch_model, source)
        config.model_config.model = config.model_config.tokenizer = folder
        args = front_end_args(model.front_end, keep_alive_s)
        args.model = folder
        args.served_model_name = list(model.names)
        args.structured_outputs_config = config.structured_outputs_config
        engine = RemoteEngineClient(config, tasks, client, dialect=dialect, is_traced=is_traced)
        app = build_app(args, tasks, config.model_config)
        await init_app_state(engine, app.state, args, tasks)
        # vLLM asks this for the adapter that a request's `model` names; it has none of its own.
        app.state.openai_serving_models.lora_requests = _AdapterOfRequest()
        app.add_exception_handler(RequestValidationError, _answer_validation)
        answer_stumbles(app)
        _drop_middleware(app)
        # vLLM has built the stack of handlers already; without it the next request builds it anew.
        app.middleware_stack = None
        # vLLM would tell its web server to stop when an engine dies. Ours is not for it to stop.
        app.state.server = SimpleNamespace(should_exit=False)
        client.add_sink(engine)
        return cls(model, app, engine, client)

    @property
    def adapter_base(self) -> AdapterBase:
        """What adapters of this model must fit."""
        config = self._engine.vllm_config
        hf_config = config.model_config.hf_config.to_dict()
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        lora = config.lora_config
        targets = lora.target_modules if lora is not None else None
        is_known = dtype in get_args(Dtype)
        return AdapterBase(
            shape=shape_of(hf_config, cast(Dtype, dtype), targets) if is_known else None,
            max_rank=lora.max_lora_rank if lora is not None else 0,
            kind=str(hf_config.get("model_type")),
        )

    @property
    def model_name(self) -> ModelName:
        """The base model's name, whatever alias a request used."""
        return self._model.name

    @property
    def has_failed(self) -> bool:
        """Whether it can no longer turn outputs into answers. Never by a request's fault."""
        return bool(self._engine.errored)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps it from being retired under a request that has not reached its engine yet."""
        self._n_inside += 1
        try:
            yield
        finally:
            self._n_inside -= 1

    async def retire(self) -> None:
        """Returns when the last request has ended and everything is given back."""
        while self._n_inside or self._client.has_requests_of(self._engine):  # noqa: ASYNC110
            await asyncio.sleep(1.0)  # Rare, no hurry.
        self._client.remove_sink(self._engine)
        self._engine.shutdown()
