"""Unit tests of `serve_app.serve_log`."""

import logging
from collections.abc import Iterator
from logging.config import dictConfig
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest

from serve_app.serve_log import serve_log_kept


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A log file behind a buffer, as Serve's replicas have it."""
    file = tmp_path / "replica.log"
    target = logging.FileHandler(file)
    buffer = MemoryHandler(capacity=1, target=target)
    logger = logging.getLogger("ray.serve")
    logger.addHandler(buffer)
    yield file
    logger.removeHandler(buffer)
    buffer.close()
    target.close()


def test_serve_writes_on_after_another_package_has_configured_logging(log: Path) -> None:
    # Handlers of other tests are left alone: dictConfig closes those that logging knows.
    handlers = logging._handlerList[:]  # type: ignore[attr-defined]  # what is closed
    with serve_log_kept():
        dictConfig({"version": 1, "disable_existing_loggers": False})
    logging._handlerList[:] = handlers  # type: ignore[attr-defined]
    logging.getLogger("ray.serve").error("still here")
    assert "still here" in log.read_text()
    [buffer] = [h for h in logging.getLogger("ray.serve").handlers if isinstance(h, MemoryHandler)]
    assert isinstance(buffer.target, logging.FileHandler)
    assert buffer.target.baseFilename == str(log)
