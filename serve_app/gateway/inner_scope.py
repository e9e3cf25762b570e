"""What a model's front end gets to see of an HTTP request."""

from starlette.types import Scope

from serve_app import telemetry
from serve_app.gateway.answered import REQUEST_ID_HEADER
from serve_app.gateway.meter import current_meter

_ROUTING = ("app", "router", "endpoint")
"""The front end is an application of its own; it must not see the gateway's."""
_TRACE = {b"traceparent", b"tracestate"}


def inner_scope(scope: Scope) -> Scope:
    """Returns the scope for a front end, with the request's id and trace in its headers.

    vLLM names its own requests by the id, so routers' and engines' log lines can be found by it.
    """
    own = {REQUEST_ID_HEADER: telemetry.request_id.get().encode()}
    trace, not_theirs = current_meter.get().trace, set(own)
    if trace is not None:
        own |= {name.encode(): value.encode() for name, value in trace.headers.items()}
        not_theirs |= _TRACE
    inner = {name: value for name, value in scope.items() if name not in _ROUTING}
    inner["state"] = {}
    inner["headers"] = [header for header in scope["headers"] if header[0] not in not_theirs]
    inner["headers"] += own.items()
    return inner
