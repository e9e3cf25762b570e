"""The platform as the fairness benchmark runs it: with keys, several gateways, and any policy.

Clients choose their gateway: each listens on a port of its own beside HAProxy's. A change of
policy is a deployment, which restarts the routers and nothing else.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from bench.arriero_system import ARRIERO_ROLES, arriero_application, describe_model
from bench.ray_served import RayServed
from bench.report import say
from bench.sim_engine import EngineModel
from bench.systems import ENGINE_ARGS, MODEL_NAME, NotRunningError, has_answer, wait_ready
from deployments.echo_pace import Pace
from serve_app.embedded_model import prepare_embedded_model
from serve_app.keys import FreshKey, make_key
from serve_app.names import TenantId
from tests.support.adapters import make_family

THREE = "three-engines"
"""Name of the model that has three engines, together as quick as the other's one."""
PAIR = ("pair-0", "pair-1")
"""Names of two models in one fairness domain, together as quick as the other's one."""
ADAPTED = "adapted"
"""Name of a model with one engine that takes adapters."""
N_ADAPTERS = 50
BATCH = 20
"""Requests in a batch: what the paper's engine holds of 256/256."""
SPARE = 4
"""Requests that an engine is handed beyond its batch."""
_RUNNING_TOKENS = 384
"""Of the KV cache for each place of the batch, in the mean of 256/256. The rest is prefix cache."""
_READY_S = 180.0
_STATUS_EVERY_S = 1.5
"""How old what `/ready` says may be, and somewhat more."""
_LIMITS = {"max_waiting": 100_000, "max_wait_s": 3600.0}


@dataclass(frozen=True)
class Keys:
    """Tenants with real keys. The platform is told the keys' hashes only."""

    texts: Mapping[TenantId, Sequence[str]]
    declared: Sequence[dict[str, Any]]
    """As in a config file."""


def make_keys(n_keys: Mapping[TenantId, int], weights: Mapping[TenantId, float]) -> Keys:
    """Makes as many keys for each tenant; tenants without a weight have 1."""
    keys: dict[TenantId, list[FreshKey]] = {
        tenant: [make_key() for _ in range(n)] for tenant, n in n_keys.items()
    }
    return Keys(
        {tenant: [key.text for key in some] for tenant, some in keys.items()},
        [
            {
                "id": tenant,
                "weight": weights.get(tenant, 1.0),
                "keys": [{"hash": key.hash} for key in some],
            }
            for tenant, some in keys.items()
        ],
    )


@dataclass
class FairPlatform:
    """This platform on a Ray of its own.

    Args:
        models: As in a config file.
        keys: Who may ask.
        n_gateways: How many.
    """

    models: Sequence[dict[str, Any]]
    keys: Keys
    n_gateways: int
    policy: str = "vtc"
    adapters: Path | None = None
    """Folder with the family of adapters of ADAPTED, if that is among the models."""
    gateways: list[str] = field(default_factory=list)
    """Every gateway's own address, once it runs."""

    def __post_init__(self) -> None:
        key = next(iter(self.keys.texts.values()))[0]
        self.served = RayServed("Arriero", self._describe(), {}, ARRIERO_ROLES, key)

    def start(self) -> None:
        """Starts it and waits until all of it answers."""
        say(f"starting {self.n_gateways} gateways and {len(self.models)} models")
        self.served.start()
        waited_s = wait_ready(self.served)
        self._wait_for_gateways()
        say(f"  ready after {waited_s:.0f} s")

    def stop(self) -> None:
        """Ends all of it and removes its files."""
        self.served.stop()

    def set_policy(self, policy: str) -> None:
        """Deploys another policy, and waits until new routers decide by it."""
        if policy == self.policy:
            return
        self.policy = policy
        before = self._routers()
        self.served.redeploy(self._describe())
        _wait(lambda: len(self._routers() - before) == len(before), "router by another policy")
        _wait(lambda: not self._routers() & before, "end of the old routers")
        self._wait_for_gateways()

    def wait_until_idle(self) -> None:
        """Waits until nothing waits or runs any more."""
        _wait(self._is_idle, "end of all requests")

    def _is_idle(self) -> bool:
        time.sleep(_STATUS_EVERY_S)
        with urllib.request.urlopen(f"{self.gateways[0]}/ready", timeout=5) as response:
            models = json.load(response)["models"].values()
        engines = [engine for model in models for engine in model["engines"]]
        in_engines = sum(engine["running"] + engine["waiting"] for engine in engines)
        return bool(in_engines + sum(model["waiting"] for model in models) == 0)

    def _describe(self) -> list[dict[str, Any]]:
        return [
            arriero_application(
                list(self.models),
                gateway={"cpus": 0.2, "replicas": self.n_gateways},
                auth={"kind": "keys"},
                tenants=list(self.keys.declared),
                limits=_LIMITS,
                fairness={"policy": self.policy},
                **self._describe_adapters(),
            )
        ]

    def _describe_adapters(self) -> dict[str, Any]:
        if self.adapters is None:
            return {}
        cache = self.adapters.with_name("cache")
        family = {"base": ADAPTED, "source": str(self.adapters)}
        return {"adapters": {"families": [family], "cache": {"path": str(cache)}}}

    def _wait_for_gateways(self) -> None:
        """Waits until every gateway answers for every model."""
        _wait(lambda: len(self._find_gateways()) == self.n_gateways, "answer of all gateways")
        self.gateways = self._find_gateways()
        for url in self.gateways:
            for model in self.models:
                _wait(
                    lambda url=url, name=model["name"]: has_answer(  # type: ignore[misc]  # defaults
                        url, key=self.served.key, model=name
                    ),
                    f"answer of {model['name']}",
                )

    def _find_gateways(self) -> list[str]:
        urls = [f"http://127.0.0.1:{port}" for port in self.served.replica_ports]
        return [url for url in urls if _is_ready(url)]

    def _routers(self) -> set[int]:
        return {p.pid for p, role in self.served.processes.with_roles() if role == "router"}


def _wait(is_so: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + _READY_S
    while not is_so():
        if time.monotonic() > give_up_s:
            raise NotRunningError(f"no {what} within {_READY_S:.0f} s")
        time.sleep(0.3)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False


def describe_echo(
    engine: EngineModel, speed: float, n_engines: int, prompt_chunk: int | None = None
) -> dict[str, Any]:
    """Returns a model entry: the paper's engine so many times as fast, in so many parts."""
    batch = {name: getattr(engine, name) / speed * n_engines for name in Pace.__struct_fields__}
    name = MODEL_NAME if n_engines == 1 else THREE
    pace = {"batch": batch, "prefix_cache_tokens": engine.kv_tokens - BATCH * _RUNNING_TOKENS}
    entry = describe_model(name, {"kind": "echo", "max_num_seqs": BATCH, **pace})
    replicas = {"min": n_engines, "max": n_engines}
    return entry | {"replicas": replicas, "prompt_chunk_tokens": prompt_chunk}


def describe_pair(engine: EngineModel, speed: float) -> list[dict[str, Any]]:
    """Returns two model entries of one fairness domain: a tenant may be kept to one engine."""
    model = describe_echo(engine, speed, 2)
    alone = {"replicas": {"min": 1, "max": 1}, "domain": "pair"}
    return [model | alone | {"name": name} for name in PAIR]


def describe_adapted(engine: EngineModel, speed: float) -> dict[str, Any]:
    """Returns a model entry as the first one's, with room for every adapter in one batch."""
    entry = describe_echo(engine, speed, 1)
    return entry | {"name": ADAPTED, "adapters": {"slots": N_ADAPTERS, "max_rank": 8}}


def write_adapters(folder: Path) -> list[str]:
    """Writes adapters for ADAPTED; returns their names as clients write them."""
    names = make_family(folder, prepare_embedded_model(), N_ADAPTERS, ranks=[8])
    return [f"{ADAPTED}:{name}" for name in names]


def describe_vllm() -> dict[str, Any]:
    """Returns a model entry: the real engine with the real small model."""
    return describe_model(
        MODEL_NAME, {"kind": "vllm", "args": {**ENGINE_ARGS, "max_num_seqs": BATCH}}
    )
