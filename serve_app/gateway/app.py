"""HTTP: which path goes where, and the same error body for whatever goes wrong.

request -> Edge (key, request id, errors) -> this gateway's own routes
-> Dispatch (body, model) -> the model's front end
"""

import asyncio
import logging
import time
import uuid
from typing import Annotated, Any

import vllm
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app import telemetry
from serve_app.adapter_registry import Adapter
from serve_app.catalog import Caller
from serve_app.cell_messages import ROUTER_PATH
from serve_app.config_tenants import Scope as KeyScope
from serve_app.gateway.adapter_choice import AdapterChoice, current_adapter
from serve_app.gateway.admin import add_admin_routes
from serve_app.gateway.admin_adapters import LORA_PATHS, add_adapter_routes
from serve_app.gateway.answer import FrontEndAnswer, internal_error
from serve_app.gateway.answered import Answered
from serve_app.gateway.auth import check_sight, current_caller
from serve_app.gateway.body import (
    ClientGoneError,
    Outer,
    Peek,
    peek,
    read_body,
    run_until_hang_up,
)
from serve_app.gateway.deadline import late_error
from serve_app.gateway.error_body import ApiError, from_validation, render
from serve_app.gateway.gateway import Gateway, Target
from serve_app.gateway.inner_scope import inner_scope
from serve_app.gateway.meter import Meter, current_meter
from serve_app.gateway.null_params import drop_nulls
from serve_app.gateway.openapi import build_openapi
from serve_app.gateway.peer_routes import add_peer_routes
from serve_app.gateway.request_log import log_request
from serve_app.gateway.request_routes import add_request_routes
from serve_app.gateway.status_routes import STATUS_PATH, add_status_routes
from serve_app.gateway.timing_report import LastChunk
from serve_app.gateway.transcript import Transcript
from serve_app.gateway.usage_routes import add_usage_routes
from serve_app.metrics_book import as_discovery

logger = logging.getLogger(__name__)

MODEL_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
"""What a model's front end may be asked; vLLM's other routes stay out of reach."""

_DOCS_FILES = "/docs-files"
_OPEN_PATHS = (
    "/health",
    "/ready",
    "/version",
    "/openapi.json",
    "/docs",
    ROUTER_PATH,  # Another cell shows a key of its own.
    *(
        f"{_DOCS_FILES}/{name}"
        for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
    ),
)


def build_gateway_app(gateway: Gateway) -> ASGIApp:
    """Returns the ASGI application of one gateway."""
    # FastAPI's own page takes its parts from a CDN, out of reach where clusters have no way out.
    app = FastAPIOffline(
        title="Arriero", version=telemetry.version(), redoc_url=None, static_url=_DOCS_FILES
    )
    _add_own_routes(app, gateway)
    add_admin_routes(app, gateway.accounts)
    add_adapter_routes(app, gateway)
    add_usage_routes(app, gateway.accounts)
    add_request_routes(app, gateway.accounts)
    add_status_routes(app, gateway)
    add_peer_routes(app, gateway)
    dispatch = Dispatch(gateway)
    for path in MODEL_PATHS:
        app.router.routes.append(Route(path, endpoint=dispatch, methods=["POST"]))
    schema: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not schema:
            schema.update(build_openapi(app, MODEL_PATHS))
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    return Edge(app, gateway)


def _add_own_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> dict[str, str]:
        """Whether this process lives."""
        return {"status": "ok"}

    @app.get("/ready", tags=["state"], responses={503: {"description": "Some model is not ready"}})
    async def ready() -> JSONResponse:
        """State of every model and its engines. 200 when all are ready, else 503."""
        state = gateway.readiness()
        headers = {} if state["ready"] else {"Retry-After": "5"}
        return JSONResponse(state, 200 if state["ready"] else 503, headers)

    @app.get("/version", tags=["state"])
    async def version() -> dict[str, str]:
        """Versions of this platform and of the engine."""
        return {"version": telemetry.version(), "vllm": vllm.__version__}

    @app.get("/metrics/targets", tags=["state"])
    async def targets() -> list[dict[str, Any]]:
        """Where every process shows its metrics, for Prometheus' `http_sd_configs`.

        Where keys are on, for keys with the scope `admin`.
        """
        check_sight(current_caller.get())
        return as_discovery(await gateway.metrics.find_targets())

    @app.get("/v1/models", tags=["models"])
    async def models(
        limit: Annotated[int, Query(ge=0, le=1000)] = 1000, after: str = ""
    ) -> dict[str, Any]:
        """The models that requests may name, and adapters, of which `limit` behind `after`.

        With `has_more` there are others: ask again with the last one's `id` as `after`.
        """
        caller = current_caller.get()
        bases = gateway.directory.model_cards(caller) if not after else []
        cards, has_more = gateway.directory.adapter_cards(caller, after, limit)
        return {"object": "list", "data": bases + cards, "has_more": has_more}

    @app.get("/v1/models/{model:path}", tags=["models"], responses={404: {"description": "None"}})
    async def model(model: str) -> dict[str, Any]:
        """One model or adapter."""
        return gateway.directory.find_card(model, current_caller.get())


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    payload, headers = render(error, request.url.path)
    response = Response(payload, error.status)
    response.raw_headers = headers
    return response


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _answer_api_error(request, _from_starlette(error, request.scope))


async def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _answer_api_error(request, from_validation(error.errors()))


class Dispatch:
    """Hands a request to the front end of the model that its body names."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs one request (ASGI)."""
        body = await read_body(scope, receive, self._gateway.settings.gateway.max_body_bytes)
        seen = peek(body)
        meter = current_meter.get()
        target = await self._find_target(seen.model, scope["path"], meter, receive)
        body = drop_nulls(scope["path"], body)
        with target.front_end.in_use():
            await self._run(target, seen, body, scope, receive, send)

    async def _run(
        self, target: Target, seen: Peek, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        meter = current_meter.get()
        front_end, adapter = target.front_end, target.adapter
        meter.version, meter.is_waking = target.version, target.is_waking
        current_adapter.set(None)
        if adapter is not None and seen.model is not None:
            current_adapter.set(await self._choose(adapter, seen.model, meter))
        adapter_name = adapter.name if adapter is not None else ""
        meter.begin(
            front_end.model_name,
            self._gateway.price_of(front_end.model_name, adapter_name),
            is_max_tokens_given=seen.is_max_tokens_given,
            adapter=adapter_name,
        )
        retry_after_s = self._gateway.settings.limits.retry_after_s
        transcript = None
        if meter.caller.tenant.settings.keeps_texts:
            most_bytes = self._gateway.settings.records.max_text_bytes
            send = transcript = Transcript(send, scope["path"], body, most_bytes)
        if meter.wants_last_chunk:
            send = LastChunk(send, scope["path"], meter.read_timings)
        answer = FrontEndAnswer(send, scope["path"], retry_after_s, lambda: meter.failure)
        inner = inner_scope(scope)
        accounts = self._gateway.accounts
        with accounts.open_usage.holding(meter, answer):
            try:
                await run_until_hang_up(front_end.app, inner, body, Outer(receive, answer))
            except Exception as error:
                await answer.fail(error)
            finally:
                texts = None
                # Asked again at the end: its tenant may have changed its mind, or be gone.
                if transcript is not None and self._gateway.keeps_texts(meter.caller):
                    texts = transcript.texts()
                record = meter.close(answer.outcome, answer.status, texts)
                if record is not None:
                    accounts.recorder.record(record)

    async def _find_target(
        self, model_name: str | None, path: str, meter: Meter, receive: Receive
    ) -> Target:
        try:
            async with asyncio.timeout_at(meter.deadline_s):
                return await self._gateway.find_target(model_name, path, meter.caller, receive)
        except TimeoutError as error:
            raise late_error(meter) from error

    async def _choose(self, adapter: Adapter, asked: str, meter: Meter) -> AdapterChoice:
        try:
            async with asyncio.timeout_at(meter.deadline_s):
                return await self._gateway.choose_adapter(adapter, asked, meter.caller)
        except TimeoutError as error:
            raise late_error(meter) from error


class Edge:
    """The outermost layer: key, request id, and no exception ever leaves it."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.monotonic()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        answered = Answered(send, request_id, self._gateway.metrics, started_s)
        path, is_gone = scope["path"], False
        telemetry.request_id.set(request_id)
        caller: Caller | None = None
        try:
            if path not in _OPEN_PATHS:
                caller = self._gateway.identify(headers, _scope_of(path))
                current_caller.set(caller)
            if path in MODEL_PATHS and caller is not None:
                answered.meter = self._gateway.make_meter(caller, headers, started_s)
                current_meter.set(answered.meter)
                if self._gateway.tracing is not None:
                    answered.meter.trace = self._gateway.tracing.begin(path, headers)
            await self._app(scope, receive, answered)
        except ApiError as error:
            await answered.with_error(error, path)
        except ClientGoneError:
            is_gone = True
        except Exception:
            logger.exception("Request %s failed.", request_id)
            await answered.with_error(internal_error(), path)
        finally:
            if answered.meter is not None:
                answered.meter.count(is_gone=is_gone)
            _end_trace(answered)
            log_request(
                scope["method"],
                path,
                answered.status,
                time.monotonic() - started_s,
                caller.tenant_id if caller is not None else "",
                answered.meter,
            )


def _end_trace(answered: Answered) -> None:
    meter = answered.meter
    if meter is not None and meter.trace is not None:
        meter.trace.end(meter.clock, answered.status, meter.record)


def _scope_of(path: str) -> KeyScope | None:
    """The scope that a path needs; any key does for what only tells of its own tenant."""
    if path in MODEL_PATHS:
        return "inference"
    if path == STATUS_PATH:
        return None  # Its route asks for more, where keys are on.
    is_admin = path == "/admin" or path.startswith("/admin/") or path in LORA_PATHS
    return "admin" if is_admin else None


def _request_id(headers: Headers) -> str:
    """The client's own id where it is sane, so that its logs and ours agree."""
    given = headers.get("x-request-id", "")
    if 0 < len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"req-{uuid.uuid4().hex}"


def _from_starlette(error: HTTPException, scope: Scope) -> ApiError:
    method, path = scope["method"], scope["path"][:200]
    if error.status_code == 404:
        return ApiError(404, f"There is no {method} {path} here. /docs lists what there is.")
    if error.status_code == 405:
        return ApiError(405, f"{path} does not take {method}. /docs lists what it takes.")
    return ApiError(error.status_code, str(error.detail))
