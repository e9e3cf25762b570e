import io
import json
import logging

import pytest

from serve_app import telemetry
from serve_app.config import LoggingSettings

logger = logging.getLogger("serve_app.tests")


def capture(settings: LoggingSettings, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    for name in ("serve_app", "deployments", "cluster"):
        package = logging.getLogger(name)
        monkeypatch.setattr(package, "handlers", package.handlers)
        monkeypatch.setattr(package, "propagate", package.propagate)
    telemetry.set_up_logging(settings)
    return written


def test_line_is_json_with_its_fields_and_request(monkeypatch: pytest.MonkeyPatch) -> None:
    written = capture(LoggingSettings(format="json"), monkeypatch)
    telemetry.request_id.set("req-1")
    logger.info("GET /x", extra=telemetry.with_fields({"status": 200, "tenant": "a"}))
    line = json.loads(written.getvalue())
    assert (line["message"], line["status"], line["tenant"]) == ("GET /x", 200, "a")
    assert (line["request_id"], line["level"]) == ("req-1", "INFO")


def test_line_for_people_ends_with_its_fields_and_request(monkeypatch: pytest.MonkeyPatch) -> None:
    written = capture(LoggingSettings(), monkeypatch)
    telemetry.request_id.set("req-1")
    logger.info("GET /x", extra=telemetry.with_fields({"status": 200}))
    assert written.getvalue().endswith("serve_app.tests: GET /x status=200 [req-1]\n")


def test_level_is_changed_and_goes_back_to_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    written = capture(LoggingSettings(level="WARNING"), monkeypatch)
    logger.info("not written")
    telemetry.set_log_level("DEBUG")
    logger.debug("written")
    telemetry.set_log_level("")
    logger.info("not written either")
    assert telemetry.log_level() == "WARNING"
    assert "written" in written.getvalue()
    assert "not written" not in written.getvalue()
    telemetry.set_up_logging(LoggingSettings())
