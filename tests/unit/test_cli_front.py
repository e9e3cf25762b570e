"""`arriero front`: what people read, and what it refuses."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.front_config import socket_of
from cluster.front_socket import HAProxySocket
from cluster.machine import choose_free_port
from serve_app import cli
from serve_app.config_file import load_front_file
from serve_app.errors import ConfigError
from tests.support.platform import wait_until

ROOT = Path(__file__).parents[2]


def _write(folder: Path, front: dict[str, Any] | None, **others: Any) -> Path:
    args = {"front": front, "store": {"state_dir": str(folder)}, **others}
    app = {"name": "arriero", "import_path": "serve_app.main:build", "args": args}
    file = folder / "front.yaml"
    file.write_text(yaml.safe_dump({"applications": [app]}))
    return file


class _Ready(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = (
            b'{"models": {"m": {"state": "ready", "engines": [{"state": "ready", "places": 8}]}}}'
        )
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """HAProxy's checks hang up once they have seen the status."""


@pytest.fixture
def haproxy(short_path: Path) -> Iterator[HAProxySocket]:
    socket = HAProxySocket(socket_of(short_path / "front"))
    yield socket
    if (pid := socket.pid()) is not None:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cell() -> Iterator[str]:
    server = _Server(("127.0.0.1", 0), _Ready)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_dry_run_shows_cells_and_starts_nothing(
    cell: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [
        {"name": "east", "url": cell, "zone": "x/east/a", "usd_per_h": 2.5},
        {"name": "west", "url": "http://127.0.0.1:9"},
    ]
    file = _write(short_path, {"cells": cells})
    assert cli.main(["front", str(file), "--dry-run"]) == 0
    header, east, west = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["cell", "at", "zone", "$/h", "places", "busy", "state"]
    assert east == ["east", cell, "x/east/a", "2.50", "8", "0", "ready"]
    assert west[-3:] == ["does", "not", "answer"]
    assert not (short_path / "front").exists()


@contextlib.contextmanager
def _started(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_front_serves_is_taken_over_and_ends_at_a_signal(
    cell: str, short_path: Path, haproxy: HAProxySocket
) -> None:
    port = choose_free_port("127.0.0.1", 25400, 25599)
    front = {"port": port, "period_s": 0.1, "cells": [{"name": "east", "url": cell}]}
    file = _write(short_path, front)
    command = [sys.executable, "-m", "serve_app.cli", "front", str(file)]
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    with _started(command) as first:
        wait_until(is_up, 60.0, "the front answers")
        assert httpx.get(f"{url}/ready").headers["x-arriero-cell"] == "east"
        first.kill()
    pid = haproxy.pid()
    assert pid is not None
    assert is_up()
    with _started(command) as second:
        assert second.stdout is not None
        line = second.stdout.readline()
        assert "east: serves, 8 places" in line
        assert haproxy.pid() == pid
        refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30.0)
        assert refused.returncode == 1
        assert "keeps this front" in refused.stderr
        second.send_signal(signal.SIGTERM)
        assert "ends with its last answer" in second.stdout.read()
    wait_until(lambda: haproxy.pid() is None, 10.0, "HAProxy has ended")


def test_a_port_that_is_taken_is_said(
    cell: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = _write(short_path, {"port": taken.getsockname()[1], "cells": []})
        assert cli.main(["front", str(file)]) == 1
    assert "HAProxy does not start" in capsys.readouterr().err


def test_a_bank_without_a_key_is_refused(
    short_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ARRIERO_CELLS_KEY", raising=False)
    file = _write(short_path, {"bank": {}})
    assert cli.main(["front", str(file)]) == 2
    assert "ARRIERO_CELLS_KEY is not set" in capsys.readouterr().err
    monkeypatch.setenv("ARRIERO_CELLS_KEY", "short")
    assert cli.main(["front", str(file)]) == 2


def test_file_without_a_front_says_where_an_example_is(short_path: Path) -> None:
    with pytest.raises(ConfigError, match="configs/front"):
        load_front_file(_write(short_path, None))


def test_the_example_is_valid_and_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_front_file(ROOT / "configs" / "front.yaml").front.cells
    with pytest.raises(SystemExit):
        cli.main(["front", "--help"])
    assert "arriero front configs/front.yaml" in capsys.readouterr().out


def test_cells_of_a_fleet_are_known_by_its_files(short_path: Path) -> None:
    from cluster.front_parts import build_front

    fleet = {"name": "f", "target": 1, "provisioner": {"kind": "skypilot", "port": 8123}}
    parts = build_front(load_front_file(_write(short_path, {}, fleet=fleet)))
    assert parts.fleet is not None
    assert (parts.fleet.folder, parts.fleet.port) == (short_path / "fleet" / "f", 8123)
    fleet["provisioner"] = {"kind": "skypilot", "ray_head": "10.0.0.1:6379"}
    assert build_front(load_front_file(_write(short_path, {}, fleet=fleet))).fleet is None
    parts.watch.close()
