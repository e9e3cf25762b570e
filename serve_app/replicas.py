"""What runs inside Serve's replicas: thin shells that give plain classes their place in Ray.

Constructors take plain data and handles; `reconfigure` takes what may change without a restart.
"""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.config import LoggingSettings, Settings
from serve_app.config_adapters import AdapterCacheSettings
from serve_app.config_limits import ledger_folder
from serve_app.config_metrics import MetricsSettings
from serve_app.config_model import ModelSettings
from serve_app.config_store import state_dir_of
from serve_app.errors import InternalError
from serve_app.loopback import keep_replica_on_loopback
from serve_app.messages import Endpoint, EngineId
from serve_app.metrics import Metrics
from serve_app.metrics_book import RayBook
from serve_app.metrics_server import MetricsServer
from serve_app.names import ModelName
from serve_app.router_link import FindRouter
from serve_app.serve_log import serve_log_kept
from serve_app.telemetry import set_up_logging
from serve_app.wire import Listener

_BEFORE_NODE_S = 1.0
"""So long before its node ends an engine is to be rid of all."""
_SIGTERM_S = 8.0
"""In which an engine ends after a SIGTERM. Machines that shut down wait longer before they kill."""
_CALM_S = 2.0
"""Without requests, before an engine that drains is done: what gateways have read for it alone, as
its successors have another tokenizer, may still be on its way."""
_NO_DEADLINE_S = 600.0
"""That a cell has left, where its head drains and nobody says until when."""


def _replica_name() -> str:
    context = serve.get_replica_context()
    return f"{context.deployment}-{context.replica_id.unique_id}"


def _node_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray's


def _show_metrics(metrics: Metrics, process: str) -> MetricsServer | None:
    """Begins to serve this process's metrics, where there are any."""
    if not metrics.is_on:
        return None
    server = MetricsServer(metrics, _node_address(), process, _replica_name(), RayBook())
    server.start()
    return server


def _find_by(handle: DeploymentHandle[Any]) -> FindRouter:
    async def find() -> Endpoint:
        endpoint: Endpoint = await handle.endpoint.remote()
        return endpoint

    return find


class RouterReplica:
    """Runs the router of one fairness domain."""

    async def __init__(self, domain: ModelName) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_replica_on_loopback()
        self._domain = domain
        self._router: Any = None
        self._task: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Takes new limits; makes the router the first time."""
        from deployments.router import Router
        from deployments.router_state import StateFile
        from serve_app.engine_scaler import RayBoard
        from serve_app.serve_control import RayServe

        settings = Settings.model_validate(user_config)
        set_up_logging(settings.logging)
        if self._router is None:
            metrics = Metrics(settings.metrics)
            self._router = Router(
                self._domain,
                settings,
                Listener(_node_address()),
                keeper=StateFile(state_dir_of(settings.store) / "router", self._domain),
                metrics=metrics,
                board=RayBoard(),
                control=RayServe(serve.get_replica_context().app_name),
            )
            self._task = asyncio.get_running_loop().create_task(self._router.run(), name="router")
            self._shown = _show_metrics(metrics, "router")
        else:
            self._router.configure(settings)

    async def endpoint(self) -> Endpoint:
        """Where gateways and engines connect to."""
        endpoint: Endpoint = self._router.endpoint
        return endpoint

    async def check_health(self) -> None:
        """Raises when the router has stopped, so that Serve replaces it."""
        if self._task is not None and self._task.done():
            raise InternalError(f"The router of {self._domain!r} stopped: {self._task}")


class LedgerReplica:
    """Runs the ledger."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
        keep_replica_on_loopback()
        self._ledger: Any = None

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Takes new limits; makes the ledger the first time."""
        from deployments.ledger_host import LedgerHost
        from deployments.ledger_journal import FileJournal

        settings = Settings.model_validate(user_config)
        set_up_logging(settings.logging)
        if self._ledger is None:
            journal = FileJournal(ledger_folder(settings.ledger, settings.store))
            metrics = Metrics(settings.metrics)
            self._ledger = LedgerHost(settings, journal, _node_address(), metrics)
            self._ledger.start()
            self._shown = _show_metrics(metrics, "ledger")
        else:
            self._ledger.configure(settings)

    async def endpoint(self) -> Endpoint:
        """Where gateways connect to; raises while it does not listen yet."""
        endpoint: Endpoint = self._ledger.endpoint
        return endpoint

    async def check_health(self) -> None:
        """Raises when the ledger has stopped, so that Serve replaces it."""
        if self._ledger is not None:
            self._ledger.check_health()


class EngineReplica:
    """Runs one engine."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        model: Mapping[str, Any],
        logging: Mapping[str, Any],
        adapters: Mapping[str, Any],
        metrics: Mapping[str, Any],
        router: DeploymentHandle[Any],
    ) -> None:
        keep_replica_on_loopback()
        from deployments.engine import Engine
        from deployments.sigterm import hear_sigterm

        set_up_logging(LoggingSettings.model_validate(logging))
        own_metrics = Metrics(MetricsSettings.model_validate(metrics))
        self._model = ModelSettings.model_validate(model)
        self._engine = Engine(
            self._model,
            EngineId(_replica_name()),
            _find_by(router),
            _node_address(),
            AdapterCacheSettings.model_validate(adapters),
            metrics=own_metrics,
            calm_s=_CALM_S,
        )
        self._shown = _show_metrics(own_metrics, "engine")
        self._watch = asyncio.create_task(self._leave_with_node(), name="node-notice")
        await self._engine.start()
        hear_sigterm(self._begin_to_leave)

    def _begin_to_leave(self) -> None:
        """At a SIGTERM what runs moves within the seconds that whoever sent it waits."""
        self._leaving = asyncio.create_task(self._leave_and_end(), name="sigterm")

    async def _leave_and_end(self) -> None:
        await self._engine.drain(min(self._model.drain_timeout_s, _SIGTERM_S))
        await self._engine.stop()
        os._exit(0)

    async def _leave_with_node(self) -> None:
        """At a notice nothing new is taken, and what runs is gone before the node is."""
        from deployments.node_notice import observe_by_ray, wait_for_notice

        node_id = ray.get_runtime_context().get_node_id()
        left_s = await wait_for_notice(node_id, observe_by_ray()) - _BEFORE_NODE_S
        await self._engine.drain(min(self._model.drain_timeout_s, max(left_s, _BEFORE_NODE_S)))

    async def check_health(self) -> None:
        """Raises when the engine has died, so that Serve replaces it."""
        self._engine.check_health()

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing new and is rid of its requests in this time; the process stays."""
        await self._engine.drain(timeout_s)

    async def __del__(self) -> None:
        """Drains; Serve calls and awaits this before it ends the process."""
        if hasattr(self, "_engine"):
            await self._engine.stop()


class GatewayReplica:
    """Runs one gateway.

    Args:
        others: The ledger and every domain's router, so that Serve knows they belong to this
            application. They are looked up by name when needed: models come and go without a new
            gateway.
    """

    def __init__(self, app_name: str, *others: DeploymentHandle[Any]) -> None:
        keep_replica_on_loopback()
        with serve_log_kept():
            from serve_app.gateway.app import build_gateway_app
            from serve_app.gateway.behind_serve import OneRequestId
            from serve_app.gateway.gateway import Gateway
            from serve_app.gateway.gateway_metrics import GatewayMetrics

        self._app_name = app_name
        self._metrics = Metrics()
        self._shown: MetricsServer | None = None
        self._gateway = Gateway(
            _replica_name(),
            self._find_router_of,
            self._find_ledger,
            GatewayMetrics(self._metrics, RayBook()),
        )
        self._build: Callable[[], ASGIApp] = lambda: OneRequestId(build_gateway_app(self._gateway))
        self._watch: asyncio.Task[None] | None = None

    def _find_router_of(self, domain: ModelName) -> FindRouter:
        from serve_app.deployment_names import router_of

        return lambda: self._find(router_of(domain))

    async def _find_ledger(self) -> Endpoint:
        from serve_app.deployment_names import LEDGER

        return await self._find(LEDGER)

    async def _find(self, deployment: str) -> Endpoint:
        handle: Any = serve.get_deployment_handle(deployment, self._app_name)
        endpoint: Endpoint = await handle.endpoint.remote()
        return endpoint

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Takes new settings; streams go on."""
        settings = Settings.model_validate(user_config)
        set_up_logging(settings.logging)
        self._gateway.configure(settings)
        if self._shown is None:
            self._shown = _show_metrics(self._metrics, "gateway")
        if self._watch is None:
            self._watch = asyncio.create_task(self._leave_with_head(), name="node-notice")

    async def _leave_with_head(self) -> None:
        """At a notice for the head's node the cell is not ready any more, and says until when."""
        from deployments.node_notice import HEAD, observe_head_by_ray, wait_for_notice

        left_s = await wait_for_notice(HEAD, observe_head_by_ray())
        self._gateway.leaves_s = time.time() + min(left_s, _NO_DEADLINE_S)

    async def check_health(self) -> None:
        """Raises when this gateway can no longer serve, so that Serve replaces it."""
        self._gateway.check_health()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Returns the application that Serve puts behind its HTTP port."""
        return self._build()

    async def __del__(self) -> None:
        """Stores what is left to store; Serve has drained the streams by then."""
        if hasattr(self, "_gateway"):
            await self._gateway.stop()
