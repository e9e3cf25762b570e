"""The whole platform in one process, without Ray: routers, engines, gateways and the ledger.

Its parts are those that Serve's replicas hold (`serve_app.replicas`); only the way they find each
other is another. They run on an event loop of their own in a thread, so that tests may use
synchronous clients, and asynchronous ones on a loop of theirs.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import uvicorn

from deployments.engine import Engine
from deployments.ledger_host import LedgerHost
from deployments.ledger_journal import FileJournal
from deployments.router import Router
from deployments.router_state import StateFile
from serve_app.config import Settings
from serve_app.config_model import EchoEngine, ModelSettings
from serve_app.gateway.app import build_gateway_app
from serve_app.gateway.gateway import Gateway
from serve_app.gateway.gateway_metrics import GatewayMetrics
from serve_app.messages import Endpoint, EngineId
from serve_app.metrics import Metrics
from serve_app.names import ModelName
from serve_app.router_link import FindRouter
from serve_app.wire import Listener
from tests.support.engine_nursery import EngineNursery, ForkedEngine
from tests.support.engine_process import EngineProcess, read_endpoint, write_endpoint
from tests.support.ledger_process import LedgerProcess
from tests.support.router_process import RouterProcess

_HOST = "127.0.0.1"
T = TypeVar("T")


class GatewayServer:
    """One gateway behind a real HTTP server."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        # With the protocol named, as asyncio switches Nagle's delays off only then.
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.bind((_HOST, 0))
        # Who asks before the server takes connections waits, and is not refused.
        self.socket.listen(128)
        self.url = f"http://{_HOST}:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(
            build_gateway_app(gateway), log_level="warning", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.task: asyncio.Task[None] | None = None


class LocalPlatform:
    """Starts with `with`; `url` answers by then unless told not to wait.

    Args:
        settings: As for the real platform.
        folder: For files that engine processes read and write.
        engines_in_processes: Whether each engine gets a process of its own. Echo engines need
            none, except to be killed; vLLM's do.
        ledger_in_process: Whether the ledger gets a process of its own, to be killed.
        routers_in_processes: Whether each router gets a process of its own, to be killed.
        n_gateways: Gateways, all with the same settings.
        n_engines: Engines of each model. None means `replicas.min`.
        is_waiting: Whether to wait until every model is ready at every gateway.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        *,
        engines_in_processes: bool = False,
        ledger_in_process: bool = False,
        routers_in_processes: bool = False,
        n_gateways: int = 1,
        n_engines: int | None = None,
        is_waiting: bool = True,
    ) -> None:
        self.settings = settings
        self.engine_processes: dict[EngineId, EngineProcess | ForkedEngine] = {}
        self._nurseries: dict[ModelName, EngineNursery] = {}
        self.engines: dict[EngineId, Engine] = {}
        self._folder = folder
        self._engines_in_processes = engines_in_processes
        self._ledger_in_process = ledger_in_process
        self._ledger_process: LedgerProcess | None = None
        self._ledger: LedgerHost | None = None
        self._routers_in_processes = routers_in_processes
        self._n_gateways = n_gateways
        self._n_engines_each = n_engines
        self._is_waiting = is_waiting
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="platform", daemon=True)
        self._routers: dict[ModelName, tuple[Router, asyncio.Task[None]]] = {}
        self._router_processes: dict[ModelName, RouterProcess] = {}
        self._gateways: list[GatewayServer] = []
        self._n_engines = 0
        self.metrics = Metrics(settings.metrics)
        """Of all parts that run in this process."""

    # --- what tests use ---------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The first gateway's address."""
        return self._gateways[0].url

    @property
    def urls(self) -> list[str]:
        """Every gateway's address."""
        return [gateway.url for gateway in self._gateways]

    def client(self, key: str) -> httpx.Client:
        """A client of the first gateway with this key."""
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60.0)

    def ready(self, url: str | None = None) -> dict[str, Any]:
        """What `/ready` says."""
        answer: dict[str, Any] = httpx.get(f"{url or self.url}/ready", timeout=10.0).json()
        return answer

    def count_running(self) -> int:
        """Requests that engines have, running or waiting, as `/ready` shows them."""
        return sum(engine["running"] + engine["waiting"] for engine in self.list_engines())

    def count_in_engines(self) -> int:
        """Requests that engines have at this moment, by their own count; none are in processes."""
        loads = [engine.load for engine in self.engines.values()]
        return sum(load.running + load.waiting for load in loads)

    def count_waiting(self) -> int:
        """Requests that wait at routers, as `/ready` shows them."""
        return sum(int(model["waiting"]) for model in self.ready()["models"].values())

    def list_engines(self) -> list[dict[str, Any]]:
        """Every engine as `/ready` shows it."""
        return [e for model in self.ready()["models"].values() for e in model["engines"]]

    def tickets_by_engine(self) -> dict[EngineId, list[str]]:
        """What each engine runs for these gateways, by their own knowledge."""

        async def look() -> dict[EngineId, list[str]]:
            found: dict[EngineId, list[str]] = {}
            for gateway in self._gateways:
                for model in gateway.gateway._models.values():
                    for ticket in model.client._runs.values():
                        assert ticket.engine_id is not None
                        found.setdefault(ticket.engine_id, []).append(ticket.id)
            return found

        return self.run(look())

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Waits for the platform to get somewhere; returns the seconds that it took."""
        return wait_until(is_so, timeout_s, what)

    def wait_until_ready(self, timeout_s: float = 240.0) -> None:
        """Waits until every gateway can serve every model."""
        for url in self.urls:
            wait_until(partial(self.is_ready, url), timeout_s, f"ready: {url}")

    def is_ready(self, url: str | None = None) -> bool:
        """Whether every model is ready. A gateway too busy to say so is not."""
        try:
            return bool(self.ready(url)["ready"])
        except httpx.TimeoutException:
            return False

    def add_engine(self, model_name: ModelName) -> EngineId:
        """Starts one more engine of a model."""
        return self.run(self._start_engine(self._model(model_name)))

    def kill_engine(self, engine_id: EngineId) -> None:
        """Kills an engine's process."""
        self.engine_processes.pop(engine_id).kill()

    def stop_engine(self, engine_id: EngineId) -> None:
        """Drains an engine and ends it, as a scale-down does."""
        self.run(self.engines.pop(engine_id).stop())

    def replace_router(self, model_name: ModelName) -> None:
        """Ends a model's router at once and starts another one, at another endpoint."""
        self.run(self._replace_router(model_name))

    def kill_ledger(self) -> None:
        """Kills the ledger's process."""
        assert self._ledger_process is not None, "it has a process of its own"
        self._ledger_process.kill()

    def start_ledger(self) -> None:
        """Starts another ledger process, with the same journal."""
        self._ledger_process = LedgerProcess(self.settings, self._folder / "ledger.endpoint")

    def kill_router(self, model_name: ModelName) -> None:
        """Kills the process of a model's router."""
        self._router_processes.pop(model_name).kill()

    def start_router(self, model_name: ModelName) -> None:
        """Starts a router, as Serve does for one that was killed."""
        if self._routers_in_processes:
            file = self._endpoint_file(model_name)
            self._router_processes[model_name] = RouterProcess(model_name, self.settings, file)
            return
        keeper = StateFile(self._folder / "router", model_name)
        router = Router(
            model_name, self.settings, Listener(_HOST), keeper=keeper, metrics=self.metrics
        )
        self._routers[model_name] = (router, asyncio.create_task(router.run()))
        write_endpoint(self._endpoint_file(model_name), router.endpoint)

    def configure(self, settings: Settings) -> None:
        """Gives gateways and ledger other settings, as a deployment of a changed file does."""

        async def apply() -> None:
            if self._ledger is not None:
                self._ledger.configure(settings)
            for gateway in self._gateways:
                gateway.gateway.configure(settings)

        self.run(apply())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the platform's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120.0)

    # --- starting and stopping --------------------------------------------------------------

    def __enter__(self) -> "LocalPlatform":
        self._thread.start()
        try:
            self.run(self._start())
            if self._is_waiting:
                self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engine_processes.values():
            engine.kill()
        for nursery in self._nurseries.values():
            nursery.close()
        if self._ledger_process is not None:
            self._ledger_process.kill()
        for router in self._router_processes.values():
            router.kill()
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10.0)
        self._loop.close()

    async def _start(self) -> None:
        if self._ledger_in_process:
            self.start_ledger()
        else:
            self._start_ledger_here()
        for domain in {model.domain_name for model in self.settings.models}:
            self.start_router(domain)
        for i in range(self._n_gateways):
            self._start_gateway(f"gateway-{i}")
        has_engines = self.settings.cell is None or not self.settings.cell.only_gateways
        for model in self.settings.models if has_engines else ():
            n_engines = self._n_engines_each
            for _ in range(model.replicas.min if n_engines is None else n_engines):
                await self._start_engine(model)

    def _start_gateway(self, name: str) -> None:
        gateway = Gateway(
            name, self._find_router_of, self._find_ledger, GatewayMetrics(self.metrics)
        )
        gateway.configure(self.settings)
        server = GatewayServer(gateway)
        server.task = asyncio.create_task(server.server.serve(sockets=[server.socket]))
        self._gateways.append(server)

    def _start_ledger_here(self) -> None:
        journal = FileJournal(self._folder / "journal")
        self._ledger = LedgerHost(self.settings, journal, _HOST, self.metrics)
        self._ledger.start()

    async def _find_ledger(self) -> Endpoint:
        if self._ledger is not None:
            return self._ledger.endpoint
        content = (self._folder / "ledger.endpoint").read_bytes()
        return msgspec.msgpack.decode(content, type=Endpoint)

    async def _start_engine(self, model: ModelSettings) -> EngineId:
        self._n_engines += 1
        engine_id = EngineId(f"engine-{self._n_engines}")
        if self._engines_in_processes:
            file = self._endpoint_file(model.domain_name)
            self.engine_processes[engine_id] = self._start_process(model, engine_id, file)
            return engine_id
        find_router, cache = self._find_router_of(model.domain_name), self.settings.adapters.cache
        engine = Engine(model, engine_id, find_router, _HOST, cache, metrics=self.metrics)
        await engine.start()
        self.engines[engine_id] = engine
        return engine_id

    def _start_process(
        self, model: ModelSettings, engine_id: EngineId, file: Path
    ) -> EngineProcess | ForkedEngine:
        if not isinstance(model.engine, EchoEngine):
            return EngineProcess(model, engine_id, file, self.settings.adapters.cache)
        if model.name not in self._nurseries:
            self._nurseries[model.name] = EngineNursery(model, file, self.settings.adapters.cache)
        return self._nurseries[model.name].start(engine_id)

    async def _replace_router(self, model_name: ModelName) -> None:
        await self._end_router(model_name)
        self.start_router(model_name)

    async def _end_router(self, model_name: ModelName) -> None:
        router, task = self._routers.pop(model_name)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        router.close()

    async def _stop(self) -> None:
        for server in self._gateways:
            server.server.should_exit = True
            assert server.task is not None
            await server.task
            await server.gateway.stop()
            server.socket.close()
        await asyncio.gather(*(engine.stop() for engine in self.engines.values()))
        for model_name in list(self._routers):
            await self._end_router(model_name)
        if self._ledger is not None:
            await self._ledger.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _find_router_of(self, model_name: ModelName) -> FindRouter:
        async def find() -> Endpoint:
            if self._routers_in_processes:
                return read_endpoint(self._endpoint_file(model_name))
            return self._routers[model_name][0].endpoint

        return find

    def _endpoint_file(self, model_name: ModelName) -> Path:
        return self._folder / f"{model_name}.endpoint"

    def _model(self, model_name: ModelName) -> ModelSettings:
        return next(m for m in self.settings.models if m.name == model_name)


def wait_until(is_so: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Waits until something is so; returns the seconds that it took.

    Raises:
        TimeoutError: It was not so in time; names what was waited for.
    """
    started_s = time.monotonic()
    while not is_so():
        if time.monotonic() - started_s > timeout_s:
            raise TimeoutError(f"not {what} within {timeout_s:g} s")
        time.sleep(0.02)
    return time.monotonic() - started_s
