"""One line a request: who, what, how it ended, and where the time went. No texts, no keys."""

import logging
from typing import TYPE_CHECKING, Any

from serve_app.log_lines import log_line
from serve_app.usage import UsageRecord

if TYPE_CHECKING:
    from serve_app.gateway.meter import Meter

logger = logging.getLogger(__name__)

_LONGEST_PATH = 200
_QUIET_PATHS = ("/health", "/ready", "/metrics/targets")
"""Asked every few seconds by whoever watches."""


def log_request(
    method: str, path: str, status: int, total_s: float, tenant: str, meter: "Meter | None"
) -> None:
    """Writes the line of a request that has ended.

    Args:
        method: HTTP.
        path: HTTP; cut off, as a client chooses it.
        status: HTTP; 0 where the client left before there was one.
        total_s: From its arrival to its end.
        tenant: Whose; empty where nobody knows.
        meter: Of a request for a model.
    """
    if path in _QUIET_PATHS or not logger.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Any] = {"status": status, "total_ms": _ms(total_s)}
    if tenant:
        fields["tenant"] = tenant
    if meter is not None and meter.trace is not None:
        fields["trace_id"] = meter.trace.id
    if meter is not None and meter.record is not None:
        fields |= _fields_of(meter.record)
    log_line(logger, f"{method} {ascii(path[:_LONGEST_PATH])[1:-1]}", fields)


def _fields_of(record: UsageRecord) -> dict[str, Any]:
    return {
        "model": record.adapter or record.model,
        "outcome": record.outcome,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "ttft_ms": None if record.ttft_s is None else _ms(record.ttft_s),
        "gateway_ms": _ms(record.gateway_s),
        "queue_ms": _ms(record.queue_s),
        "router_ms": _ms(record.router_s),
        "adapter_load_ms": _ms(record.adapter_load_s),
        "engine_ttft_ms": _ms(record.engine_ttft_s),
        "migrations": record.migrations,
        "engine": record.engine,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
