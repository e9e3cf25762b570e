"""What every process says about itself: log lines with their request, and the version."""

import logging
from contextvars import ContextVar
from importlib import metadata

import msgspec

from serve_app.config import LoggingSettings

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that the present task works for."""

_PACKAGES = ("serve_app", "deployments", "cluster")


def version() -> str:
    """This platform's version; "0" from a folder that was never installed."""
    try:
        return metadata.version("arriero")
    except metadata.PackageNotFoundError:
        return "0"


class _HumanFormatter(logging.Formatter):
    """time LEVEL module: text [request id]."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line, and a traceback where there is one."""
        line = super().format(record)
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
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def set_up_logging(settings: LoggingSettings) -> None:
    """Sends this platform's log lines to standard error. May be called again."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if settings.format == "json" else _HumanFormatter())
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(settings.level)
        logger.handlers = [handler]
        logger.propagate = False
