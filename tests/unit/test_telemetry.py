import errno
import io
import json
import logging
import time

import pytest

from serve_app import telemetry
from serve_app.config import LoggingSettings
from serve_app.log_lines import LineHandler, log_line
from tests.support.platform import wait_until

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
    log_line(logger, "GET /%s", {"status": 200, "tenant": "a"})
    wait_until(lambda: bool(written.getvalue()), 5.0, "written")
    line = json.loads(written.getvalue())
    assert (line["message"], line["status"], line["tenant"]) == ("GET /%s", 200, "a")
    assert (line["request_id"], line["level"]) == ("req-1", "INFO")


def test_line_for_people_ends_with_its_fields_and_request(monkeypatch: pytest.MonkeyPatch) -> None:
    written = capture(LoggingSettings(), monkeypatch)
    telemetry.request_id.set("req-1")
    log_line(logger, "GET /x", {"status": 200})
    wait_until(lambda: bool(written.getvalue()), 5.0, "written")
    assert written.getvalue().endswith("serve_app.tests: GET /x status=200 [req-1]\n")


def test_lines_of_requests_wait_for_each_other_and_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = capture(LoggingSettings(format="json"), monkeypatch)
    for i in range(3):
        telemetry.request_id.set(f"req-{i}")
        log_line(logger, "GET /x", {})
    assert written.getvalue() == ""
    logger.info("an engine has come")
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["request_id"] for line in lines[:3]] == ["req-0", "req-1", "req-2"]
    assert lines[3]["message"] == "an engine has come"


def test_what_waits_is_written_when_a_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    written = capture(LoggingSettings(), monkeypatch)
    log_line(logger, "GET /x", {})
    logging.getLogger("serve_app").handlers[0].flush()  # As logging does at a process's end.
    assert written.getvalue().count("GET /x") == 1


class FullDisk(io.StringIO):
    """Takes nothing the first time."""

    n_failed = 0

    def write(self, text: str) -> int:
        if not self.n_failed:
            self.n_failed += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_lines_go_on_after_a_disk_was_full(monkeypatch: pytest.MonkeyPatch) -> None:
    capture(LoggingSettings(), monkeypatch)
    handler = logging.getLogger("serve_app").handlers[0]
    assert isinstance(handler, LineHandler)
    written = FullDisk()
    handler.setStream(written)
    log_line(logger, "GET /lost", {})
    wait_until(lambda: written.n_failed == 1, 5.0, "failed")
    log_line(logger, "GET /kept", {})
    wait_until(lambda: "GET /kept" in written.getvalue(), 5.0, "written")


def test_line_has_what_other_handlers_ask_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever shows all that a record has, as pytest does, finds nothing missing."""
    monkeypatch.setattr(logging.getLogger("serve_app"), "propagate", True)
    caplog.set_level(logging.INFO, "serve_app")
    log_line(logger, "GET /x", {})
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname) == ("GET /x", "INFO")
    assert record.created <= time.time()
    assert "GET /x" in caplog.text


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
