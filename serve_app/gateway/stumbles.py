"""Requests over which vLLM's validators stumble instead of refusing them.

Some of vLLM's validators look into a request before pydantic has checked its types, so that a
parameter of the wrong type raises AttributeError or TypeError where ValueError is meant. What is
raised inside a validator is the client's to change, whatever it is; what is raised anywhere else is
not answered here.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from vllm.entrypoints.serve.exception_handling.handlers.exception import exception_handler

from serve_app.gateway.error_body import ApiError, render

STUMBLES = (AttributeError, IndexError, KeyError, RecursionError, TypeError)


def answer_stumbles(app: FastAPI) -> None:
    """Makes a front end answer such requests with 400, naming the parameter."""
    for kind in STUMBLES:
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    if not _is_from_validator(error):
        if isinstance(error, TypeError):
            answer: Response = await exception_handler(request, error)
            return answer
        raise error
    param = _find_culprit(request, await request.json())
    words = f"The parameter {param!r}" if param else "A parameter"
    refusal = ApiError(400, f"{words} has a form that cannot be read here: {error}.", param)
    payload, _ = render(refusal, request.url.path)
    return Response(payload, 400, media_type="application/json")


def _is_from_validator(error: Exception) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith(("pydantic", "fastapi._compat")):
            return True
        trace = trace.tb_next
    return False


def _find_culprit(request: Request, body: Any) -> str | None:
    """The parameter without which the validators do not stumble."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    fields = getattr(dependant, "body_params", [])
    model = getattr(getattr(fields[0], "field_info", None), "annotation", None) if fields else None
    if not isinstance(body, Mapping) or not (
        isinstance(model, type) and issubclass(model, BaseModel)
    ):
        return None
    return next((name for name in body if not _stumbles(model, body, name)), None)


def _stumbles(model: type[BaseModel], body: Mapping[str, Any], without: str) -> bool:
    try:
        model.model_validate({name: value for name, value in body.items() if name != without})
    except STUMBLES:
        return True
    except ValueError:
        return False
    return False
