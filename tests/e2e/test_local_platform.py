"""`up`, `status` and `down` as a person runs them, with real Ray and Serve and the echo engine."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from cluster.bootstrap import ROOT
from cluster.local_state import LocalState, find_processes, load_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass
class Platform:
    """A platform of its own: state, config file and port are nobody else's."""

    folder: Path
    config: Path
    port: int

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "ARRIERO_STATE_DIR": str(self.folder / "state")}
        command = [sys.executable, "-m", "cluster.local", *arguments]
        return subprocess.run(
            command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.run("up", str(self.config), "--timeout-s", "240")

    @property
    def state(self) -> LocalState | None:
        return load_state(self.folder / "state" / "local.json")


def _write_config(file: Path, port: int, **model: object) -> None:
    entry = {
        "name": "echo",
        "source": {"kind": "embedded"},
        "engine": {"kind": "echo"},
        "accelerator": {"kind": "cpu", "cpus": 0.1},
        **model,
    }
    app = {
        "name": "arriero",
        "import_path": "serve_app.main:build",
        "route_prefix": "/",
        "args": {"models": [entry], "gateway": {"cpus": 0.1}, "router": {"cpus": 0.1}},
    }
    http = {"host": "127.0.0.1", "port": port}
    file.write_text(yaml.safe_dump({"http_options": http, "applications": [app]}))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("local")
    one = Platform(folder, folder / "config.yaml", _free_port())
    _write_config(one.config, one.port)
    try:
        done = one.up()
        assert done.returncode == 0, done.stderr
        yield one
    finally:
        one.run("down")


def _listeners(platform: Platform) -> dict[str, set[str]]:
    """Addresses that the platform's processes listen on, by the process's name."""
    assert platform.state is not None
    found: dict[str, set[str]] = {}
    for process in find_processes(platform.state.mark):
        with contextlib.suppress(psutil.Error):
            name = process.name()
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(name, set()).add(connection.laddr[0])
    return found


def test_up_prints_what_a_person_needs_next_and_again_changes_nothing(platform: Platform) -> None:
    before = platform.state
    since_s = time.monotonic()
    again = platform.up()
    took_s = time.monotonic() - since_s
    assert again.returncode == 0, again.stderr
    for words in (f"http://127.0.0.1:{platform.port}", "curl ", "make down", "What is the capital"):
        assert words in again.stdout
    assert "Starting Ray" not in again.stderr
    assert platform.state == before
    assert took_s < 10


def _find_open(listeners: dict[str, set[str]]) -> dict[str, set[str]]:
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    return {name: found for name, found in listeners.items() if not found <= loopback}


def _is_replica(name: str) -> bool:
    return name.startswith("ray::ServeReplica")


def test_ray_serve_and_haproxy_listen_on_loopback_only(platform: Platform) -> None:
    listeners = _listeners(platform)
    for expected in ("haproxy", "gcs_server", "raylet"):
        assert expected in listeners
    others = {name: found for name, found in listeners.items() if not _is_replica(name)}
    assert _find_open(others) == {}


def test_replicas_listen_on_loopback_only(platform: Platform) -> None:
    replicas = {name: found for name, found in _listeners(platform).items() if _is_replica(name)}
    assert len(replicas) == 4  # gateway, router, engine, ledger
    assert _find_open(replicas) == {}


def test_ray_asks_for_its_token(platform: Platform) -> None:
    assert platform.state is not None
    answer = httpx.get(f"{platform.state.dashboard_url}/api/serve/applications/")
    assert answer.status_code == 401


def test_status_says_ready(platform: Platform) -> None:
    done = platform.run("status")
    assert done.returncode == 0
    assert "echo: ready" in done.stdout


def test_answers_name_their_request_once(platform: Platform) -> None:
    for given in ({}, {"x-request-id": "mine"}):
        answer = httpx.get(f"http://127.0.0.1:{platform.port}/v1/models", headers=given)
        [name] = answer.headers.get_list("x-request-id")
        assert name == given.get("x-request-id", name)


def test_invalid_file_leaves_the_platform_as_it_was(platform: Platform, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    _write_config(bad, platform.port, replicas={"min": 3, "max": 1})
    done = platform.run("up", str(bad))
    assert done.returncode == 2
    assert "replicas" in done.stderr
    assert platform.run("status").returncode == 0


def test_second_platform_is_told_that_the_port_is_taken(platform: Platform, tmp_path: Path) -> None:
    other = Platform(tmp_path, platform.config, platform.port)
    done = other.up()
    assert done.returncode == 1
    assert "another Arriero already answers" in done.stderr
    assert other.state is None


def test_down_stops_everything_and_nothing_else(platform: Platform) -> None:
    """Runs last: the others share this platform."""
    state = platform.state
    assert state is not None
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        done = platform.run("down")
        assert done.returncode == 0, done.stderr
        assert find_processes(state.mark) == []
        assert bystander.poll() is None
        with socket.create_server(("127.0.0.1", platform.port)):
            pass
        assert platform.state is None
        assert "Nothing runs" in platform.run("down").stdout
    finally:
        bystander.kill()
        bystander.wait()


def test_failed_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "no-weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    platform = Platform(tmp_path, tmp_path / "config.yaml", _free_port())
    _write_config(platform.config, platform.port, source={"kind": "local", "path": str(folder)})
    done = platform.up()
    assert done.returncode != 0
    assert "error:" in done.stderr
    assert platform.state is None
