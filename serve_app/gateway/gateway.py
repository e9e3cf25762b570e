"""The gateway's state: its models, who may call, and where each request goes.

A plain class; `serve_app.gateway.app` puts HTTP in front and `serve_app.main` makes it a Serve
deployment.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import Receive

from serve_app import telemetry
from serve_app.adapter_registry import Adapter
from serve_app.catalog import Caller
from serve_app.config import Settings
from serve_app.config_limits import LedgerSettings, PriceSpec, find_price
from serve_app.config_model import ModelSettings
from serve_app.config_store import fingerprint
from serve_app.config_tenants import Scope
from serve_app.dialect import dialect_of
from serve_app.errors import AdapterRefusedError, InternalError
from serve_app.gateway.accounts import Accounts
from serve_app.gateway.adapter_choice import AdapterChoice
from serve_app.gateway.adapters import GatewayAdapters
from serve_app.gateway.auth import check_scope
from serve_app.gateway.canary import CanaryTurns
from serve_app.gateway.deadline import read_timeout
from serve_app.gateway.directory import Directory
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.front_end import FrontEnd
from serve_app.gateway.gateway_metrics import GatewayMetrics
from serve_app.gateway.ledger_client import LedgerClient
from serve_app.gateway.meter import Meter
from serve_app.gateway.model_client import ModelClient
from serve_app.gateway.peers import Peers
from serve_app.gateway.roaming_client import RoamingClient
from serve_app.gateway.served_model import ServedModel
from serve_app.gateway.timing_report import wants_last_chunk
from serve_app.gateway.timings import RequestClock
from serve_app.messages import AdapterRef, Endpoint, ModelStatus
from serve_app.names import ModelName
from serve_app.router_link import FindRouter
from serve_app.standing_link import FindEndpoint

if TYPE_CHECKING:
    from serve_app.gateway.tracing import Tracing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What answers a request.

    Attributes:
        front_end: Of the base model.
        adapter: What the request names of it; None is the base model itself.
        version: Which of the model's versions; empty is the model itself.
        is_waking: Whether that slept when the request came.
    """

    front_end: FrontEnd
    adapter: Adapter | None
    version: str
    is_waking: bool


class KnownModel(NamedTuple):
    """A model as a gateway sees it."""

    name: ModelName
    domain: ModelName
    state: str
    detail: str
    status: ModelStatus


FindRouterOf = Callable[[ModelName], FindRouter]
"""Returns how to find the router of a fairness domain."""


class Gateway:
    """Knows the models and finds the one that a request is for.

    Args:
        gateway_id: Unique in the cluster.
        find_router_of: How to find each domain's router.
        find_ledger: How to find the ledger.
        metrics: Where this gateway counts.
    """

    def __init__(
        self,
        gateway_id: str,
        find_router_of: FindRouterOf,
        find_ledger: FindEndpoint,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        self._identity = gateway_id.encode()
        self._find_router_of = find_router_of
        self._models: dict[ModelName, ServedModel] = {}
        self._canaries: dict[ModelName, ServedModel] = {}
        """By the name of the model whose other version each is."""
        self._canary_turns = CanaryTurns()
        self._tasks: set[asyncio.Task[None]] = set()
        self.metrics = metrics or GatewayMetrics()
        self.accounts = Accounts()
        self.adapters = GatewayAdapters(self.accounts, self._say_gone)
        self.directory = Directory(self._models, self.adapters.registry)
        self._find_ledger = find_ledger
        self._ledger: LedgerClient | None = None
        self.tracing: Tracing | None = None
        """None where requests are not traced."""
        self.peers: Peers | None = None
        """Knows other cells; None where this one does not reach them."""
        self.leaves_s: float | None = None
        """When the whole cell ends, in seconds since 1970; None where it is to stay."""
        self.settings: Settings

    def configure(self, settings: Settings) -> None:
        """Takes new settings. Models that did not change keep their connections and streams."""
        self.settings = settings
        self.metrics.configure(settings.metrics, self._show)
        if self.tracing is None and settings.tracing is not None:
            from serve_app.gateway.tracing import Tracing

            self.tracing = Tracing(settings.tracing)
        self.accounts.configure(settings)
        self.adapters.configure(settings.adapters)
        self._configure_ledger(settings.ledger)
        self._configure_peers(settings)
        self.directory.configure(settings.models)
        self._follow(self._models, {model.name: (model, model) for model in settings.models})
        canaries = {model.name: (model.canary_version, model) for model in settings.models}
        self._follow(self._canaries, {n: (c, m) for n, (c, m) in canaries.items() if c is not None})

    def _follow(
        self,
        models: dict[ModelName, ServedModel],
        wanted: Mapping[ModelName, tuple[ModelSettings, ModelSettings]],
    ) -> None:
        for name in models.keys() - wanted.keys():
            self._spawn(models.pop(name).close_when_idle())
        for name, (model, shown_as) in wanted.items():
            known = models.get(name)
            if known is None:
                models[name] = self._connect(model, shown_as)
            else:
                known.client.configure(self.settings.limits)
                if (known.settings, known.shown_as) != (model, shown_as):
                    self._replace_settings(known, model, shown_as)

    def check_health(self) -> None:
        """Raises InternalError when a part has failed: a new gateway is the remedy."""
        self.accounts.check_health()
        for model in self._served():
            if model.front_end is not None and model.front_end.has_failed:
                name = model.settings.name
                raise InternalError(f"The front end of {name!r} stopped handling outputs.")

    async def stop(self) -> None:
        """Writes down what is left and drops every connection."""
        self.close()
        await self.adapters.close()
        if self.peers is not None:
            await self.peers.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
        await self.accounts.close()

    def close(self) -> None:
        """Drops every connection."""
        self.metrics.close()
        for model in self._served():
            model.client.close()
        for task in self._tasks:
            task.cancel()
        if self._ledger is not None:
            self._ledger.close()

    # --- requests ---------------------------------------------------------------------------

    def identify(self, headers: Mapping[str, str], scope: Scope | None) -> Caller:
        """Returns who sends a request that needs a scope, or any key where that is None.

        Raises:
            ApiError: 401; 403 the key lacks the scope; 503 keys are not known yet.
        """
        caller = self.accounts.authenticator.identify(headers)
        if scope is not None:
            check_scope(caller, scope)
        return caller

    def make_meter(self, caller: Caller, headers: Mapping[str, str], started_s: float) -> Meter:
        """Returns what counts and times a request for a model.

        Args:
            caller: Whose it is.
            headers: Of the request.
            started_s: When it arrived, by the monotonic clock.

        Raises:
            ApiError: 400; `x-request-timeout` is no number of seconds.
        """
        assert self._ledger is not None, "configure comes first"
        timeout_s = read_timeout(headers, self.settings.gateway.request_timeout_s)
        meter = Meter(caller, self._ledger, timeout_s, self.metrics)
        meter.clock = RequestClock(started_s)
        meter.wants_last_chunk = wants_last_chunk(headers)
        return meter

    def keeps_texts(self, caller: Caller) -> bool:
        """Whether prompts and answers of a caller are to be kept, as far as is known now."""
        return self.accounts.catalog.keeps_texts(caller.tenant_id)

    def price_of(self, model: ModelName, adapter: str) -> PriceSpec:
        """Returns what tokens of a base model, or of its adapter of this full name, cost."""
        return find_price(self.settings.prices, model, adapter)

    async def find_target(
        self, model_name: str | None, path: str, caller: Caller, receive: Receive
    ) -> Target:
        """Returns what answers a request. Wakes a model that sleeps, and may wait for that.

        Raises:
            ApiError: 400 no model named though there are several, or it cannot do this; 404 there
                is no such model for this caller; 503 it is still loading, or usage cannot be
                recorded.
            ClientGoneError: The client went away while it waited.
        """
        base, adapter = self.directory.resolve(model_name, caller)
        model = self._choose_version(base) if adapter is None else self._models[base]
        self.accounts.check_room()
        state, front_end = model.state, None
        if state.takes_requests:
            front_end = model.reader or await model.wake(receive, self.settings.limits)
        if front_end is None:
            raise model.explain_not_ready(max(5.0, self.settings.limits.retry_after_s))
        if path not in front_end.paths:
            raise ApiError(
                400,
                f"The model {model.settings.name!r} cannot serve {path}. Use a model that can.",
                param="model",
                code="unsupported_endpoint",
            )
        version = "" if model is self._models.get(base) else "canary"
        return Target(front_end, adapter, version, is_waking=state.state != "ready")

    def _choose_version(self, base: ModelName) -> ServedModel:
        canary = self._canaries.get(base)
        if canary is None or not canary.state.takes_requests:
            return self._models[base]
        return canary if self._canary_turns.is_next(base, canary.percent) else self._models[base]

    async def choose_adapter(self, adapter: Adapter, asked: str, caller: Caller) -> AdapterChoice:
        """Returns the version of an adapter that a request gets. May fetch it.

        Raises:
            ApiError: 400 it cannot be served, and why; 404 there is none; 503 not now.
        """
        try:
            return AdapterChoice(asked, await self.adapters.resolve(adapter, caller))
        except AdapterRefusedError:
            raise self.directory.no_such_model(asked, caller) from None

    def _say_gone(self, refs: list[AdapterRef]) -> None:
        for ref in refs:
            model = self._models.get(ref.base)
            if model is not None:
                model.client.say_gone(ref)

    # --- what is known ----------------------------------------------------------------------

    def readiness(self) -> dict[str, Any]:
        """State of every model, for `/ready`. A cell that ends is not ready for more."""
        models = {name: model.show() for name, model in self._models.items()}
        store = self.accounts.state
        # A canary that is not ready keeps nobody from being served.
        canaries = {model.settings.name: model.show() for model in self._canaries.values()}
        is_whole = all(m["ready"] for m in models.values()) and store != "loading"
        return {
            "ready": is_whole and self.leaves_s is None,
            "leaves_s": self.leaves_s,
            "only_gateways": self.peers is not None and self.peers.settings.only_gateways,
            "models": models | canaries,
            "store": {"state": store},
            "adapters": self.adapters.counts(),
        }

    def known_models(self) -> list[KnownModel]:
        """Every model and how it stands, in the settings' order, and then canaries."""
        return [
            KnownModel(
                model.settings.name,
                model.settings.domain_name,
                model.state.state,
                model.state.detail,
                model.client.status,
            )
            for model in self._served()
        ]

    def set_log_level(self, level: str) -> None:
        """Changes how much this gateway and all that it is connected to log; empty resets it."""
        telemetry.set_log_level(level)
        for model in self._served():
            model.client.set_log_level(level)
        if self._ledger is not None:
            self._ledger.set_log_level(level)

    async def find_router(self, model_name: str) -> Endpoint | None:
        """Returns where the router of a model is, for another cell; None where it is none here."""
        served = (model for model in self._served() if model.settings.name == model_name)
        model = next(served, None)
        if model is None:
            return None
        return await self._find_router_of(model.settings.domain_name)()

    # --- ledger -----------------------------------------------------------------------------

    def _configure_ledger(self, settings: LedgerSettings) -> None:
        if self._ledger is None:
            self._ledger = LedgerClient(
                self._find_ledger, self._identity, settings.wait_s, settings.lease_s
            )
            self._ledger.start()
        self._ledger.wait_s, self._ledger.lease_s = settings.wait_s, settings.lease_s

    def _show(self) -> None:
        ready = {name: model.state.takes_requests for name, model in self._models.items()}
        usage = self.accounts.recorder.state
        self.metrics.show(ready, usage.waiting, usage.lost)

    # --- models -----------------------------------------------------------------------------

    def _configure_peers(self, settings: Settings) -> None:
        """Other cells are known from the start or not at all: connections are made for that."""
        if self.peers is None and settings.cell is not None and settings.cell.reaches_others:
            self.peers = Peers(settings.cell, fingerprint(settings.store))

    def _connect(self, settings: ModelSettings, shown_as: ModelSettings) -> ServedModel:
        def read_as(config_id: str, payload: bytes) -> None:
            self._spawn(self._build_front_end(model, payload, dialect_of(config_id)))

        args = (
            settings.name,
            # One router may serve several models, each over a connection of its own.
            self._identity + b"/" + settings.name.encode(),
            self._find_router_of(settings.domain_name),
            self.settings.limits,
            read_as,
            self.metrics.of_model(settings.name),
            self.adapters.doubt,
        )
        client = ModelClient(*args)
        if self.peers is not None:
            client = RoamingClient(*args, peers=self.peers, sleeps=settings.replicas.min == 0)
        model = ServedModel(settings, shown_as, client)
        client.start()
        return model

    async def _build_front_end(self, model: ServedModel, payload: bytes, dialect: str) -> None:
        started_s = time.monotonic()
        try:
            keep_alive_s = self.settings.gateway.sse_keep_alive_s
            fresh = await FrontEnd.build(
                model.shown_as,
                payload,
                model.client,
                keep_alive_s,
                dialect=dialect,
                is_traced=self.tracing is not None,
            )
        except Exception as error:
            logger.exception("The front end of %s could not be built.", model.settings.name)
            model.problem = f"its front end could not be built: {error}"
            return
        old, model.front_end = model.front_end, fresh
        model.payload, model.dialect, model.problem = payload, dialect, ""
        if model.settings is model.shown_as:
            self.adapters.introduce(model.settings.name, fresh.adapter_base)
        logger.info(
            "Front end of %s built in %.1f s.", model.settings.name, time.monotonic() - started_s
        )
        if old is not None:
            self._spawn(old.retire())

    def _replace_settings(
        self, model: ServedModel, settings: ModelSettings, shown_as: ModelSettings
    ) -> None:
        """New names or templates need a new front end; new engines bring one themselves."""
        model.settings, model.shown_as = settings, shown_as
        if isinstance(model.client, RoamingClient):
            model.client.sleeps = settings.replicas.min == 0
        if model.payload:
            self._spawn(self._build_front_end(model, model.payload, model.dialect))

    def _served(self) -> Iterator[ServedModel]:
        return chain(self._models.values(), self._canaries.values())

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
