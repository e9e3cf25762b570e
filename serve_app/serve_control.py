"""What Serve says of our engines, and how something else is deployed from inside.

It asks as `serve status` and `serve deploy` do from outside, by the client that every replica has.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from serve_app.deployment_names import engine_of
from serve_app.engine_scaler import NAMESPACE
from serve_app.names import ModelName

_MENDED = "mended"
_UPDATE_STOPPED = "rolling update"
"""In what Serve says of an update that it gave up, whatever had gone wrong before."""


@dataclass(frozen=True, slots=True)
class EngineDeployment:
    """How the deployment of a model's engines stands."""

    is_given_up: bool
    """Whether Serve starts no more of them."""
    is_whole: bool = False
    """Whether as many run as Serve wants, all of the newest version."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Deployed:
    """How the application stands."""

    deployed_s: float
    """When it was deployed last, which tells one deployment from another."""
    is_mended: bool = False
    """Whether the platform did that itself."""
    is_running: bool = False
    """Whether all that was deployed last runs."""
    engines: Mapping[ModelName, EngineDeployment] = field(default_factory=dict)
    """None while something is being deployed."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is known of a model's past deployments."""

    ran: dict[str, Any] | None = None
    """Its entry in the config file as it ran last; None if none ever did."""
    n_tries: int = 0
    """How often the platform deployed on its behalf since somebody else did."""
    note: str = ""
    """Why, for people."""


class RayServe:
    """Serve as its replicas reach it.

    Args:
        app_name: The application's name.
    """

    def __init__(self, app_name: str) -> None:
        self._app_name = app_name

    def observe(self, models: Iterable[ModelName]) -> Deployed:
        """Returns how the application and the engines of these models stand."""
        found = _client().get_serve_status(self._app_name)
        app, known = found.app_status, {info.name: info for info in found.deployment_statuses}
        deployed_s = app.deployment_timestamp
        is_mended = _get(_MENDED) == deployed_s
        if app.status == "DEPLOYING":
            # What is said of deployments is yet of the last version.
            return Deployed(deployed_s, is_mended)
        engines = {m: _read(known[engine_of(m)]) for m in models if engine_of(m) in known}
        return Deployed(deployed_s, is_mended, app.status == "RUNNING", engines)

    def read_args(self) -> dict[str, Any]:
        """Returns the `args` that were deployed last."""
        args: dict[str, Any] = self._read_configs()[self._app_name].args
        return args

    def deploy(self, args: dict[str, Any]) -> None:
        """Deploys the application with other `args`, all else as it is."""
        import ray
        from ray.serve.schema import ServeDeploySchema

        configs = self._read_configs()
        changed = configs[self._app_name].model_copy(update={"args": args})
        capacity = _client().get_serve_details().get("target_capacity")
        schema = ServeDeploySchema(
            applications=[*(configs | {self._app_name: changed}).values()],
            target_capacity=capacity,
        )
        deployed_s = time.time()
        _put(_MENDED, deployed_s)
        ray.get(_client()._controller.apply_config.remote(schema, deployed_s))

    def _read_configs(self) -> dict[str, Any]:
        import ray

        configs: dict[str, Any] = ray.get(_client()._controller.get_app_configs.remote())
        return configs

    def recall(self, model: ModelName) -> Memory:
        """Returns what was remembered; nothing if nothing was."""
        return Memory(**(_get(f"deployed/{model}") or {}))

    def remember(self, model: ModelName, memory: Memory) -> None:
        """Keeps this for whoever asks later, in Ray's head."""
        _put(f"deployed/{model}", asdict(memory))


def _client() -> Any:
    from ray.serve.context import _get_global_client

    return _get_global_client()


def _read(info: Any) -> EngineDeployment:
    is_given_up = info.status in ("DEPLOY_FAILED", "UNHEALTHY") and (
        info.status_trigger == "REPLICA_STARTUP_FAILED" or _UPDATE_STOPPED in info.message
    )
    return EngineDeployment(is_given_up, info.status == "HEALTHY", info.message)


def _get(key: str) -> Any:
    value = _internal_kv_get(key, namespace=NAMESPACE)
    return json.loads(value) if value else None


def _put(key: str, value: object) -> None:
    text = json.dumps(value).encode()
    _internal_kv_put(key, text, overwrite=True, namespace=NAMESPACE)
