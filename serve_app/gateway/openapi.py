"""The OpenAPI document: this gateway's own routes and those of vLLM's front end it lets through."""

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.pooling.embed.api_router import router as embed_router

from serve_app.config import FrontEndSettings
from serve_app.gateway.front_end import front_end_args

_REFUSALS = {
    "429": {"description": "A limit or budget is used up; Retry-After says until when"},
    "503": {"description": "No room, or not ready; Retry-After says when to try again"},
    "504": {"description": "Not complete within x-request-timeout"},
}


def build_openapi(app: FastAPI, model_paths: Collection[str]) -> dict[str, Any]:
    """Returns the document. Needs no model: vLLM's request forms are the same for all."""
    own = get_openapi(title=app.title, version=app.version, routes=app.routes)
    vllm_app = build_app(front_end_args(FrontEndSettings()), ("generate",), None)
    # Without a model, vLLM leaves the routes of models that embed out.
    every = [*vllm_app.routes, *embed_router.routes]
    routes = [r for r in every if getattr(r, "path", None) in model_paths]
    theirs = get_openapi(title=app.title, version=app.version, routes=routes)
    for path in theirs["paths"].values():
        for operation in path.values():
            operation["responses"] = _REFUSALS | operation.get("responses", {})
    own["paths"] |= theirs["paths"]
    own.setdefault("components", {}).setdefault("schemas", {}).update(
        theirs.get("components", {}).get("schemas", {})
    )
    own["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    own["security"] = [{"key": []}]
    return own
