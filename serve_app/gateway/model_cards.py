"""How models and adapters are shown: in `/v1/models`, and in `/ready`."""

from typing import Any

import msgspec

from serve_app.adapter_registry import Adapter, AdapterVersion
from serve_app.messages import ModelStatus
from serve_app.names import ModelName

Card = dict[str, Any]


def make_base_card(name: str, model: ModelName, since_s: float, max_model_len: int | None) -> Card:
    """Return a base model as it is listed under one of its names."""
    return {
        "id": name,
        "object": "model",
        "created": int(since_s),
        "owned_by": "arriero",
        "root": model,
        "parent": None,
        "max_model_len": max_model_len,
    }


def make_adapter_cards(
    adapter: Adapter, version: AdapterVersion | None, max_model_len: int | None
) -> list[Card]:
    """Return an adapter as it is listed, once for each of its names.

    Where it comes from is not said: that is for who runs the platform.
    """
    created_s = (version.created_s if version else 0.0) or adapter.created_s
    details = version and {
        "version": version.content,
        "rank": version.rank,
        "target_modules": list(version.modules),
    }
    return [
        {
            "id": name,
            "object": "model",
            "created": int(created_s),
            "owned_by": adapter.owner or "arriero",
            "root": adapter.name,
            "parent": adapter.base,
            "max_model_len": max_model_len,
            "adapter": details,
        }
        for name in adapter.names
    ]


def view_status(status: ModelStatus) -> dict[str, Any]:
    """Return what a router knows of its model, for `/ready`."""
    scaling = status.scaling
    return {
        "waiting": status.waiting,
        "scaling": scaling and {"wanted": scaling.wanted, "reason": scaling.reason},
        "fairness": {
            "gap": round(status.fairness.gap, 1),
            "bound": round(status.fairness.bound, 1),
            "tenants_waiting": status.fairness.tenants_waiting,
        },
        "adapters": {"requests": msgspec.to_builtins(status.adapters)},
        "engines": [
            {
                "id": engine.engine_id,
                "state": engine.state,
                "detail": engine.detail,
                "running": engine.load.running,
                "waiting": engine.load.waiting,
                "places": engine.places,
                "kv_usage": engine.load.kv_usage,
                "tokens_per_s": engine.load.tokens_per_s,
                "adapters": {
                    "in_memory": engine.adapters_in_memory,
                    **msgspec.to_builtins(engine.adapters),
                },
            }
            for engine in status.engines
        ],
    }
