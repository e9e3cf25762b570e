"""One replica: one model on its devices, known to its router, served over its own endpoint.

A plain class. `serve_app.main` wraps it into a Serve deployment; tests start it without Ray.

    loading --> ready --> draining --> gone
       |          |
       +----------+--> failed (the process ends; Serve starts another)
"""

import asyncio
import contextlib
import faulthandler
import hashlib
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

import cloudpickle

from deployments.departure import Departure
from deployments.engine_metrics import EngineMetrics
from deployments.hang_watch import HangWatch
from deployments.model_source import fetch_model
from serve_app import telemetry
from serve_app.config_adapters import AdapterCacheSettings
from serve_app.config_model import ModelSettings, VllmEngine
from serve_app.dialect import dialect_of_model, make_config_id
from serve_app.errors import EngineDeadError, EngineStartError
from serve_app.loop_watch import watch_loop
from serve_app.messages import (
    AdapterReport,
    Counters,
    Drop,
    EngineGone,
    EngineId,
    EngineLoad,
    EngineMail,
    EngineReport,
    EngineState,
    FrontEndOffer,
    GatewayMail,
    HoldOn,
    LogLevel,
    Prepare,
    Progress,
)
from serve_app.metrics import Metrics
from serve_app.router_link import FindRouter, RouterLink
from serve_app.serve_log import serve_log_kept

if TYPE_CHECKING:
    # Imported late at run time: vLLM reads the environment when it is imported.
    from vllm.config import VllmConfig

    from deployments.adapter_gate import AdapterGate
    from deployments.adapter_tier import AdapterFiles
    from deployments.engine_server import Core, EngineServer

logger = logging.getLogger(__name__)

_HEARTBEAT_S = 0.5
_PROGRESS_S = 0.1
_SPARE_REQUESTS = 4
"""Requests handed to an engine beyond its batch, so that a place never waits for a round trip."""
_FAREWELL_S = 0.2
_HEARD_S = 5.0
"""For the router to hear why an engine cannot start; some fail before they have found it."""
_WORD_S = 1.0
"""A router that is there says within it how long to wait."""


class Engine:
    """Loads a model, serves it, reports on it, drains it.

    Args:
        model: The model's settings.
        engine_id: Unique in the cluster.
        find_router: How to find the model's router.
        host: Address that gateways can reach this process at.
        adapters: Copies of adapters on this node's disk.
        adapter_files: Brings adapters to this node; None makes a store, with `adapters`.
        metrics: Of this process.
        calm_s: How long it must have had no request before it has drained.
    """

    def __init__(
        self,
        model: ModelSettings,
        engine_id: EngineId,
        find_router: FindRouter,
        host: str,
        adapters: AdapterCacheSettings = AdapterCacheSettings(),  # noqa: B008 - frozen
        adapter_files: "AdapterFiles | None" = None,
        metrics: Metrics | None = None,
        calm_s: float = 0.0,
    ) -> None:
        self._model = model
        self._engine_id = engine_id
        self._host = host
        self._state: EngineState = "loading"
        self._detail = "starting"
        self._config_id = ""
        self._front_end = b""
        self._server: EngineServer | None = None
        self._core: Core | None = None
        self._gate: AdapterGate | None = None
        self._adapter_cache = adapters
        self._adapter_files = adapter_files
        self._metrics = EngineMetrics(model.name, metrics)
        self._watching: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loaded: asyncio.Future[None] | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        self._held: asyncio.Queue[HoldOn] = asyncio.Queue()
        self._departure = Departure(
            self._is_busy, lambda: self._set_state("draining", ""), self._go, calm_s
        )
        self._hang_watch = HangWatch(model.hang_timeout_s)
        self._thread = threading.Thread(target=self._run_core, name="engine-core", daemon=True)
        self._router = RouterLink(find_router, engine_id.encode(), self._read_mail, self._introduce)

    async def start(self) -> None:
        """Returns when the model is loaded and served.

        Raises:
            EngineStartError: It could not be loaded; says why and what to do.
        """
        started_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._loaded = self._loop.create_future()
        self._router.start()
        self._heartbeat = asyncio.create_task(self._report_regularly(), name="engine-heartbeat")
        watching = watch_loop(self._metrics.metrics, self._show)
        self._watching = asyncio.create_task(watching, name="watch loop")
        self._thread.start()
        try:
            await asyncio.wait_for(self._loaded, self._model.startup_timeout_s)
        except TimeoutError:
            await self._fail_start(
                f"it was still {self._detail} after startup_timeout_s="
                f"{self._model.startup_timeout_s:g} s. Raise it if the model needs longer."
            )
        except Exception as error:
            logger.exception("Model %s could not be loaded.", self._model.name)
            await self._fail_start(f"{error}")
        if self._gate is not None:
            self._gate.warm_up()
        if not self._departure.has_begun:
            self._set_state("ready", "")
        logger.info("Model %s is ready after %.1f s.", self._model.name, self.age_s(started_s))

    @staticmethod
    def age_s(since_s: float) -> float:
        """Seconds since a time of the monotonic clock."""
        return time.monotonic() - since_s

    async def _fail_start(self, reason: str) -> None:
        message = f"Model {self._model.name!r} could not be started: {reason}"
        self._set_state("failed", message)
        await self._wait_for_router()
        with contextlib.suppress(TimeoutError):
            hold_on = await asyncio.wait_for(self._held.get(), _WORD_S)
            self._set_state(
                "failed",
                f"{message} {hold_on.n_failed} starts have failed one after the other; the next "
                f"one is in {hold_on.wait_s:.0f} s.",
            )
            await asyncio.sleep(hold_on.wait_s)
        raise EngineStartError(message)

    async def _wait_for_router(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEARD_S):
                while not self._router.is_connected:  # noqa: ASYNC110 - it is another task's
                    await asyncio.sleep(0.05)

    @property
    def load(self) -> EngineLoad:
        """What the engine is doing at this moment."""
        return self._server.load() if self._server is not None else EngineLoad()

    def check_health(self) -> None:
        """Called by Serve regularly.

        Raises:
            EngineDeadError: The core has stopped; this replica must be replaced.
        """
        if self._failure is not None:
            raise EngineDeadError(f"The engine of {self._model.name!r} died: {self._failure}")

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing new, finishes what it can in this time and lets the rest move.

        Who calls again while it drains waits for the same end; it can only come sooner.
        """
        await self._departure.leave(timeout_s)

    def _go(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()  # The next report would bring it back.
        self._router.send(EngineGone(self._engine_id))

    async def stop(self) -> None:
        """Drains for `drain_timeout_s`, then stops. One that failed leaves its reason standing."""
        if self._state != "failed":
            await self.drain(self._model.drain_timeout_s)
        if self._core is not None:
            self._core.stop()
            await asyncio.to_thread(self._thread.join, 5.0)
        if self._watching is not None:
            self._watching.cancel()
        if self._gate is not None:
            await self._gate.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)
        await asyncio.sleep(_FAREWELL_S)
        self._router.close()

    def _is_busy(self) -> bool:
        if self._server is None or self._failure is not None:
            return False
        return self._server.count_requests() > 0

    def _has_core_work(self) -> bool:
        """Whether the core is to step; it is not while requests only wait for adapters."""
        if self._server is None or self._failure is not None:
            return False
        n_waiting = 0 if self._gate is None else self._gate.n_waiting
        return self._server.count_requests() > n_waiting

    # --- the core's thread ------------------------------------------------------------------

    def _run_core(self) -> None:
        """Builds the core and steps it, all on one thread (see VllmCore)."""
        assert self._loop is not None
        try:
            with serve_log_kept():
                core = self._load()
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._finish_loading, error)
            return
        self._loop.call_soon_threadsafe(self._finish_loading, None)
        try:
            core.run()
        except BaseException as error:
            logger.exception("The engine core of %s died.", self._model.name)
            self._failure = error
            self._loop.call_soon_threadsafe(self._die)

    def _load(self) -> "Core":
        from deployments.engine_build import build_core, resolve_config
        from deployments.engine_server import EngineServer

        self._detail = "fetching the model"
        path = fetch_model(self._model.source)
        self._detail = "loading the weights"
        self._server = EngineServer(self._host, self._metrics.tokens)
        config = resolve_config(self._model, path)
        # Copied before the model is built: the loaded model hangs on the one that is used.
        offered = cloudpickle.loads(cloudpickle.dumps(config))
        self._gate = self._build_gate(config)
        emit = self._server.emit if self._gate is None else self._gate.emit
        log_stats = self._metrics.metrics.is_on
        core = build_core(self._model, config, emit, log_stats=log_stats)
        if log_stats and isinstance(self._model.engine, VllmEngine):
            from deployments.vllm_stats import VllmStats

            self._server.watch = VllmStats(config)
        offered.model_config.max_model_len = config.model_config.max_model_len
        offered.cache_config = config.cache_config
        self._front_end = cloudpickle.dumps((offered, core.tasks, self._model.source))
        fingerprint = self._model.model_dump_json() + str(config.model_config.max_model_len)
        digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
        self._config_id = make_config_id(dialect_of_model(self._model), digest)
        self._core = core
        self._server.core = core
        if self._gate is not None:
            self._gate.attach(core)
            self._server.core = self._gate
        self._server.start()
        return core

    def _build_gate(self, config: "VllmConfig") -> "AdapterGate | None":
        settings = self._model.adapters
        if settings is None:
            return None
        from deployments.adapter_gate import AdapterGate
        from deployments.engine_build import build_store

        assert self._server is not None
        assert self._loop is not None
        files = self._adapter_files or build_store(self._adapter_cache, config)
        # The router holds requests back until it hears that their adapter is here.
        return AdapterGate(
            self._server.emit,
            files,
            self._loop,
            settings.floor,
            settings.load_timeout_s,
            self._metrics.adapters(),
            lambda: self._router.send(self._make_report(is_loaded=True)),
        )

    def _finish_loading(self, error: BaseException | None) -> None:
        assert self._loaded is not None
        if self._loaded.done():
            return
        if error is None:
            self._loaded.set_result(None)
        else:
            self._loaded.set_exception(error)

    def _check_steps(self) -> None:
        """A core that hangs takes its process along: nothing else ends what it waits for."""
        if self._core is None or self._failure is not None:
            return
        now_s = time.monotonic()
        if self._hang_watch.has_hung(now_s, self._core.last_step_s, is_busy=self._has_core_work()):
            self._failure = EngineDeadError(
                f"no step has ended for hang_timeout_s={self._model.hang_timeout_s:g} s"
            )
            logger.error("The engine core of %s hangs: %s.", self._model.name, self._failure)
            faulthandler.dump_traceback(sys.__stderr__ or 2)
            self._die()

    def _die(self) -> None:
        """The core is gone and with it, perhaps, the device's state: end the process."""
        self._set_state("failed", f"the engine core died: {self._failure}")
        assert self._loop is not None
        self._loop.call_later(_FAREWELL_S, os._exit, 1)

    def _show(self) -> None:
        if self._core is not None:
            adapters = None if self._gate is None else self._gate.report()
            self._metrics.show(self.load, self._core.max_running, adapters)

    # --- reports to the router --------------------------------------------------------------

    def _set_state(self, state: EngineState, detail: str) -> None:
        self._state = state
        self._detail = detail
        self._report()

    def _introduce(self) -> None:
        self._report()

    def _report(self) -> None:
        is_loaded = self._state in ("ready", "draining")
        if is_loaded:
            self._router.send(FrontEndOffer(self._config_id, self._front_end))
        self._router.send(self._make_report(is_loaded))

    def _make_report(self, is_loaded: bool) -> EngineReport:
        if not is_loaded or self._server is None or self._core is None:
            return EngineReport(self._engine_id, self._state, self._detail, model=self._model.name)
        return EngineReport(
            self._engine_id,
            self._state,
            self._detail,
            endpoint=self._server.endpoint,
            config_id=self._config_id,
            max_running=self._core.max_running + _SPARE_REQUESTS,
            load=self.load,
            model=self._model.name,
            adapters=AdapterReport() if self._gate is None else self._gate.report(),
            prefix_tokens=self._core.prefix_tokens,
        )

    async def _report_regularly(self) -> None:
        """Progress often, because fairness knows no more than it is told; the rest seldom."""
        next_report_s = 0.0
        while True:
            await asyncio.sleep(_PROGRESS_S)
            progress = self._server.take_progress() if self._server is not None else {}
            if progress:
                self._router.send(Progress(progress))
            self._check_steps()
            if time.monotonic() >= next_report_s:
                next_report_s = time.monotonic() + _HEARTBEAT_S
                self._router.send(self._make_report(self._state in ("ready", "draining")))

    def _read_mail(self, mail: GatewayMail | EngineMail) -> None:
        if isinstance(mail, Counters) and self._core is not None:
            self._core.synchronise(mail.counters)
        elif isinstance(mail, Prepare) and self._gate is not None:
            self._gate.prepare(mail.ref, mail.tenant)
        elif isinstance(mail, HoldOn):
            self._held.put_nowait(mail)
        elif isinstance(mail, Drop) and self._gate is not None:
            self._gate.drop(mail.refs)
        elif isinstance(mail, LogLevel):
            telemetry.set_log_level(mail.level)
