"""This platform as a measured system."""

import copy
from collections.abc import Mapping
from typing import Any

from bench.ray_served import RayServed
from bench.systems import ENGINE_ARGS, KV_CACHE_GIB, MODEL_NAME

ARRIERO_ROLES = (
    ("haproxy -db", "HAProxy"),
    (":gateway", "gateway"),
    (":router-", "router"),
    (":ledger", "ledger"),
    (":engine-", "engine"),
    ("ServeController", "Serve controller"),
)


def arriero_application(models: list[dict[str, Any]], **sections: Any) -> dict[str, Any]:
    """This platform as a Serve application: as config.yaml has it, but for some sections."""
    args = {
        "models": models,
        "gateway": {"cpus": 0.2},
        "auth": {"kind": "off"},
        "logging": {"level": "WARNING"},
        **sections,
    }
    return {
        "name": "arriero",
        "import_path": "serve_app.main:build",
        "route_prefix": "/",
        "args": args,
    }


def arriero(models: list[dict[str, Any]]) -> RayServed:
    """This platform with these models and no keys."""
    return RayServed("Arriero", [arriero_application(models)], {}, ARRIERO_ROLES)


def arriero_vllm(threads: int | None = None) -> RayServed:
    """This platform with the real engine."""
    engine = {"kind": "vllm", "args": copy.deepcopy(ENGINE_ARGS)}
    return arriero([describe_model(MODEL_NAME, engine, threads)])


def arriero_echo(paced_name: str, tokens_per_s: float) -> RayServed:
    """This platform with two echo engines: MODEL_NAME answers at once, the other at a pace."""
    echo = {"kind": "echo", "max_num_seqs": 1024}
    paced = {**echo, "tokens_per_s": tokens_per_s}
    return arriero([describe_model(MODEL_NAME, echo), describe_model(paced_name, paced)])


def describe_model(
    name: str, engine: Mapping[str, Any], threads: int | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "source": {"kind": "embedded"},
        "engine": dict(engine),
        "accelerator": {
            "kind": "cpu", "kv_cache_gib": KV_CACHE_GIB, "cpus": 0.8, "threads": threads
        },
    }  # fmt: skip
