"""What every process says about itself: log lines with their request, metrics, and the version."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

import msgspec

from serve_app.config import LoggingSettings

logger = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that the present task works for."""

_PACKAGES = ("serve_app", "deployments", "cluster")
_FIELDS = "arriero_fields"
_configured_level = "INFO"


@dataclass(frozen=True)
class Gauge:
    """A number that goes up and down, as it is now."""

    name: str
    words: str
    labels: tuple[str, ...]


SERVICE_GAP = Gauge(
    "arriero_fairness_service_gap",
    "Greatest difference of service of two tenants that wait, in tokens of cost and weight 1.",
    ("domain",),
)
SERVICE_GAP_BOUND = Gauge(
    "arriero_fairness_service_gap_bound",
    "What that difference cannot exceed, by the longest request so far.",
    ("domain",),
)
COUNTER_LAG = Gauge(
    "arriero_fairness_counter_lag",
    "How far a waiting tenant is behind the waiting tenant that has got the most service.",
    ("domain", "tenant"),
)
FAILED_STARTS = Gauge(
    "arriero_engine_failed_starts",
    "Engines that failed to start, one after the other, since one was ready.",
    ("model",),
)
GAUGES = (SERVICE_GAP, SERVICE_GAP_BOUND, COUNTER_LAG, FAILED_STARTS)


class Recorder(Protocol):
    """Takes measured values."""

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
        """Replaces the value for these labels."""


class RayRecorder:
    """Hands values to Ray's metrics agent, which every node's Prometheus endpoint shows.

    Ray puts `ray_` before the names.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, Any] = {}

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
        """Replaces the value for these labels."""
        known = self._gauges.get(gauge.name)
        if known is None:
            from ray.util.metrics import Gauge as RayGauge

            known = self._gauges[gauge.name] = RayGauge(gauge.name, gauge.words, gauge.labels)
        known.set(value, tags=dict(labels))


class TenantLabels:
    """Keeps the label `tenant` bounded: the first ones are named, all others share one name.

    Args:
        limit: How many are named.
    """

    OTHERS = "(others)"
    """No tenant can have this name."""

    def __init__(self, limit: int = 200) -> None:
        self._limit = limit
        self._named: set[str] = set()

    def of(self, tenant: str) -> str:
        """Returns the label of a tenant."""
        if tenant not in self._named:
            if len(self._named) >= self._limit:
                return self.OTHERS
            self._named.add(tenant)
        return tenant


def version() -> str:
    """This platform's version; "0" from a folder that was never installed."""
    try:
        return metadata.version("arriero")
    except metadata.PackageNotFoundError:
        return "0"


def with_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `extra` of a log line with fields beside its text: numbers and names, no texts."""
    return {_FIELDS: fields}


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, _FIELDS, {})
    return fields


class _HumanFormatter(logging.Formatter):
    """time LEVEL module: text [request id]."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line, and a traceback where there is one."""
        line = super().format(record)
        fields = _fields_of(record)
        if fields:
            line += " " + " ".join(f"{name}={value}" for name, value in fields.items())
        request = request_id.get()
        return f"{line} [{request}]" if request else line


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line."""
        fields = {
            "time_s": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get() or None,
            **_fields_of(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def set_up_logging(settings: LoggingSettings) -> None:
    """Sends this platform's log lines to standard error. May be called again."""
    global _configured_level
    _configured_level = settings.level
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if settings.format == "json" else _HumanFormatter())
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(settings.level)
        logger.handlers = [handler]
        logger.propagate = False


def set_log_level(level: str) -> None:
    """Changes how much this process logs; empty is what the settings say."""
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level or _configured_level)
    logger.info("The log level is now %s.", log_level())


def log_level() -> str:
    """The least severe level that is written."""
    return logging.getLevelName(logging.getLogger(_PACKAGES[0]).level)
