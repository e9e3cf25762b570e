"""Composition root: settings in, Serve application out. The only `serve.deployment` calls.

    gateway (HTTP) ──► router of each domain ──► engines of each model
                  └──► ledger

`serve deploy config.yaml` calls `build` with the file's `args`. Whatever is wrong with them is
said here, before anything of the running application is touched.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve._private.config import DeploymentConfig
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.deployment import Application, Deployment
from ray.serve.exceptions import RayServeException

from serve_app.config import Settings, check_exposure, cost_factors_of, parse_settings
from serve_app.config_model import CpuAccelerator, ModelSettings
from serve_app.deployment_names import GATEWAY, LEDGER, engine_of, router_of
from serve_app.errors import ConfigError
from serve_app.model_entry import NOT_THE_ENGINES
from serve_app.names import ModelName
from serve_app.policy.placement import plan_placement
from serve_app.replicas import EngineReplica, GatewayReplica, LedgerReplica, RouterReplica
from serve_app.telemetry import version

APP_NAME = "arriero"

_SHUTDOWN_SLACK_S = 10.0
_START_TRIES = 3
"""After so many failures in a row a new version of a model's engines is given up."""
_HEALTH_PERIOD_S = 2.0
_ATTEMPT_S = 1e-6
_MANY = 1_000_000
"""Requests travel past Serve's own queues; its bound on them must not bind."""


def build(args: Mapping[str, Any]) -> Application:
    """Builds the application from `applications[].args` of a Serve config file.

    Raises:
        RayServeException: The settings are wrong; its text lists every problem. Serve shows it as
            the application's message and leaves the running one as it is.
    """
    try:
        settings = parse_settings(args)
        check_exposure(_http_host(), settings)
    except ConfigError as error:
        raise RayServeException(str(error)) from error
    shared = settings.model_dump(mode="json")
    # Routers need tenants' weights, and no keys.
    for_routers = settings.model_dump(mode="json", exclude={"tenants": {"__all__": {"keys"}}})
    others = [_ledger(settings, shared)]
    domains = dict.fromkeys(model.domain_name for model in settings.models)
    routers = {domain: _router(domain, settings, for_routers) for domain in domains}
    # The gateway is bound to the engines too, as Serve deploys only what the ingress reaches.
    others += routers.values()
    others += [_engine(m, settings, routers[m.domain_name]) for m in settings.with_engines]
    return _gateway(settings, shared, others)


def _http_host() -> str:
    """The address that Serve listens on, which is fixed when Serve starts."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return str(client.http_config.host) if client is not None else "127.0.0.1"


def _gateway(settings: Settings, shared: dict[str, Any], others: list[Application]) -> Application:
    gateway = settings.gateway
    deployment = serve.deployment(
        name=GATEWAY,
        num_replicas=gateway.replicas,
        ray_actor_options={"num_cpus": gateway.cpus},
        max_ongoing_requests=gateway.max_concurrent_requests,
        user_config=shared,
        graceful_shutdown_timeout_s=gateway.drain_timeout_s + _SHUTDOWN_SLACK_S,
        health_check_period_s=5.0,
        # Serve's own line a request costs a twentieth of the gateway's time.
        logging_config={"enable_access_log": False},
    )(serve.ingress()(GatewayReplica))
    # Which other cells it reaches is fixed while a gateway lives.
    return _pinned(deployment, [APP_NAME, *_cell(settings)]).bind(APP_NAME, *others)


def _ledger(settings: Settings, shared: dict[str, Any]) -> Application:
    deployment = serve.deployment(
        name=LEDGER,
        num_replicas=1,
        # Its journal is a file, so a new one has to start where the old one was.
        ray_actor_options={
            "num_cpus": settings.ledger.cpus,
            "resources": {"node:__internal_head__": 0.001},
        },
        max_ongoing_requests=_MANY,
        user_config={**shared},
        health_check_period_s=2.0,
    )(LedgerReplica)
    # What its leases and its journal are is fixed while it lives; limits are not.
    identity = [settings.ledger.model_dump(mode="json"), settings.store.state_dir, *_cell(settings)]
    return _pinned(deployment, identity).bind()


def _cell(settings: Settings) -> list[Any]:
    """Which cell this is, if it is one: fixed while a ledger or a router lives."""
    return [] if settings.cell is None else [settings.cell.model_dump(mode="json")]


def _router(domain: ModelName, settings: Settings, shared: dict[str, Any]) -> Application:
    deployment = serve.deployment(
        name=router_of(domain),
        num_replicas=1,
        ray_actor_options={"num_cpus": settings.router.cpus},
        max_ongoing_requests=_MANY,
        user_config={**shared},
        health_check_period_s=2.0,
    )(RouterReplica)
    factors = cost_factors_of(settings, domain)
    identity = [domain, settings.fairness.policy, factors, *_cell(settings)]
    return _pinned(deployment, identity).bind(domain)


def _engine(model: ModelSettings, settings: Settings, router: Application) -> Application:
    placement = plan_placement(model)
    environment = _preload(model) | dict(placement.env) | getattr(model.engine, "env", {})
    group: dict[str, Any] = {
        "placement_group_bundles": [dict(bundle) for bundle in placement.bundles],
        "placement_group_strategy": placement.strategy,
    }
    deployment = serve.deployment(
        name=engine_of(model.name),
        **_numbers_of(model),
        max_surge_percent=model.rollout.surge_percent,
        max_constructor_retry_count=_START_TRIES,
        ray_actor_options={
            "num_cpus": placement.num_cpus,
            "num_gpus": placement.num_gpus,
            "runtime_env": {"env_vars": environment},
        },
        **(group if placement.bundles else {}),
        max_ongoing_requests=_MANY,
        graceful_shutdown_timeout_s=model.drain_timeout_s + _SHUTDOWN_SLACK_S,
        # Nothing runs by way of Serve here that would be worth a wait before the drain begins.
        graceful_shutdown_wait_loop_s=0.1,
        # Serve forgets that a version failed only with another one. This makes one, of the kind
        # that restarts nothing.
        health_check_period_s=_HEALTH_PERIOD_S + _ATTEMPT_S * model.rollout.attempt,
        health_check_timeout_s=model.health_timeout_s,
    )(EngineReplica)
    # What else an engine's replica needs is in its own arguments; how many there are, how the
    # gateway renders prompts and who may call does not concern it.
    spec = model.model_dump(mode="json", exclude=set(NOT_THE_ENGINES))
    logging = settings.logging.model_dump(mode="json")
    adapters = settings.adapters.cache.model_dump(mode="json")
    metrics = settings.metrics.model_dump(mode="json")
    # Which adapters there are does not concern it either: it hears of each with a request.
    identity = [spec, adapters] if model.adapters is not None else spec
    return _pinned(deployment, identity).bind(spec, logging, adapters, metrics, router)


def _numbers_of(model: ModelSettings) -> dict[str, Any]:
    """How many engines: a number, or two and a policy that Serve asks."""
    least, most = model.replicas.min, model.replicas.max
    if least == most:
        return {"num_replicas": least}
    # With every deployment Serve forgets whom it scales, and learns it again only of those whose
    # configuration has changed: so it always has. It restarts nothing.
    policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]  # Ray's
        policy_function="serve_app.engine_scaler:EngineScaler",
        policy_kwargs={"model": model.name, "deployment": uuid.uuid4().hex},
    )
    # Its own delays and factors come on top of what the policy says, so they are none.
    numbers = AutoscalingConfig(
        min_replicas=least,
        max_replicas=most,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,
        downscale_to_zero_delay_s=0.0,
        policy=policy,
    )
    return {"autoscaling_config": numbers}


class _PinnedConfig(DeploymentConfig):
    """A deployment's configuration whose version stays what we said.

    Serve gives every deployment of an application the same version, a hash of all of the
    application's `args`, and restarts all replicas when it changes. With a version of its own,
    only what changed is restarted. If a later Ray ignores this, everything restarts again, which
    is slower and still right; tests/integration/test_redeploy.py would tell.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "version":
            value = self.version
        super().__setattr__(name, value)


def _pinned(deployment: Deployment, identity: object) -> Deployment:
    """Returns the deployment with a version that changes exactly when `identity` does."""
    text = json.dumps([version(), identity], sort_keys=True)
    fields = dict(deployment._deployment_config)
    fields["version"] = hashlib.sha256(text.encode()).hexdigest()
    deployment._deployment_config = _PinnedConfig.model_construct(**fields)
    return deployment


def _preload(model: ModelSettings) -> dict[str, str]:
    """PyTorch's OpenMP first, as vLLM's own CPU worker wants it: else threads share one core."""
    spec = find_spec("torch")
    if not isinstance(model.accelerator, CpuAccelerator) or spec is None or spec.origin is None:
        return {}
    found = sorted((Path(spec.origin).parent / "lib").glob("libgomp*.so*"))
    return {"LD_PRELOAD": str(found[0])} if found else {}
