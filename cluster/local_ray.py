"""Ray on this machine alone: its ports, its environment, its token, its start.

Everything listens on the loopback address, in every process; tests/e2e/test_local_platform.py
checks it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.local_state import MARK
from cluster.machine import choose_free_port

HOST = "127.0.0.1"

_OBJECT_STORE_BYTES = 256 << 20  # tokens are small and travel past it
_HAPROXY_STAND_IN = Path(__file__).with_name("haproxy_on_loopback.sh")


class RayStartError(Exception):
    """Ray did not start; the text says why and what to do."""


@dataclass(frozen=True)
class Ports:
    """The ports that Ray and Serve listen on besides the platform's own. All are for loopback."""

    gcs: int
    dashboard: int
    agent: int
    client: int
    fallback_proxy: int
    haproxy_metrics: int
    haproxy_stats: int
    monitor_metrics: int
    dashboard_metrics: int


def choose_ports(skip: int = 0) -> Ports:
    """Return free ports, Ray's and Serve's usual ones where they are free.

    Args:
        skip: How many of each range to leave to others that start at the same moment; below 200.

    Raises:
        RayStartError: A range has no free port.
    """
    first = {
        "gcs": 6379,
        "dashboard": 8265,
        "agent": 52365,
        "client": 10001,
        "fallback_proxy": 8500,
        "haproxy_metrics": 9101,
        "haproxy_stats": 8404,
        "monitor_metrics": 44217,
        "dashboard_metrics": 44227,
    }
    chosen: dict[str, int] = {}
    for name, port in first.items():
        taken = set(chosen.values())
        free = next(
            (p for p in range(port + skip, port + 200) if p not in taken and _is_free(p)), None
        )
        if free is None:
            raise RayStartError(
                f"Ray needs a port for {name.replace('_', ' ')}, and none from {port} to "
                f"{port + 199} is free. `ss -ltnp` shows who listens; stop what you do not need."
            )
        chosen[name] = free
    return Ports(**chosen)


def _is_free(port: int) -> bool:
    # Some of Ray's servers share a port without a word: look at every address, not at ours alone.
    return all(choose_free_port(host, port, port) for host in (HOST, "0.0.0.0"))  # noqa: S104 - only probed


def ray_environment(
    environ: Mapping[str, str], ports: Ports, folder: Path, mark: str, haproxy: str
) -> dict[str, str]:
    """Return the environment that Ray, Serve and all of their processes inherit.

    Args:
        environ: The user's environment.
        ports: Ports that are ours.
        folder: Short, private folder.
        mark: By which our processes are found again.
        haproxy: Path of the real HAProxy.
    """
    sockets = folder / "h"
    return {
        **node_environment(environ, mark),
        "AUTOSCALER_METRIC_PORT": str(ports.monitor_metrics),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_proxy),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_HAPROXY_STAND_IN),
        "ARRIERO_HAPROXY": haproxy,
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        # Serve puts a node id of 56 characters between folder and name, hence names of one letter.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(sockets / "c"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(sockets),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(sockets / "s"),
    }


def node_environment(environ: Mapping[str, str], mark: str) -> dict[str, str]:
    """Return what the processes of every node inherit, the head's and further ones'.

    Args:
        environ: The user's environment.
        mark: By which our processes are found again.
    """
    kept = {name: value for name, value in environ.items() if name not in _OTHER_CLUSTERS}
    return {
        **kept,
        MARK: mark,
        # Without it setproctitle overwrites the environment that /proc shows, mark included.
        "SPT_NOENV": "1",
        "RAY_AUTH_MODE": "token",
        # Despite its name the switch works everywhere: off, Ray's node address is the loopback
        # address and all of its servers bind to it. On, it takes the machine's outer address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs workers at the lowest priority otherwise, and here they are what matters.
        "RAY_worker_niceness": "0",
        # HAProxy in front, replicas behind it: a request crosses no Python proxy.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Our replicas only await; a second event loop would cost a hop for every token.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Three looks until Serve starts a dead HAProxy again; every ten seconds otherwise. More
        # often, and it takes one for dead while Ray's head is replaced.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "3",
    }


_OTHER_CLUSTERS = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_JOB_ID"}


def ray_start_command(ports: Ports, folder: Path) -> list[str]:
    """Return the command that starts Ray's head node, to be run with `ray_environment`."""
    return [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        f"--node-ip-address={HOST}",
        f"--port={ports.gcs}",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={ports.dashboard}",
        f"--dashboard-agent-listen-port={ports.agent}",
        f"--ray-client-server-port={ports.client}",
        # Zero: any free port. Ray's usual range, 10002 to 19999, is where people put servers.
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--temp-dir={folder / 'r'}",
        "--disable-usage-stats",
        "--log-color=false",
    ]


def start_ray(ports: Ports, folder: Path, environ: Mapping[str, str]) -> None:
    """Start Ray's head node and return when it is up.

    Raises:
        RayStartError: It did not start.
    """
    command = ray_start_command(ports, folder)
    # Ray's processes live on after this command, and must not hear a Ctrl-C meant for `up`.
    with (folder / "ray-start.log").open("w+") as log:
        done = subprocess.run(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )
        log.seek(0)
        tail = "".join(log.readlines()[-15:])
    if done.returncode != 0:
        raise RayStartError(f"Ray did not start:\n{tail}\nIts logs: {folder}/r/session_latest/logs")


def ensure_token(environ: Mapping[str, str]) -> str:
    """Return Ray's authentication token, making one for this user when there is none.

    Raises:
        RayStartError: The token cannot be read or written.
    """
    if environ.get("RAY_AUTH_TOKEN"):
        return environ["RAY_AUTH_TOKEN"]
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        if not file.exists():
            _write_token(file)
        if file.stat().st_mode & 0o077 and file.stat().st_uid == os.getuid():
            file.chmod(0o600)  # Ray writes it readable to everyone
        return file.read_text().strip()
    except OSError as error:
        raise RayStartError(
            f"Ray's authentication token {file} cannot be used: {error.strerror}. Make it readable "
            "to you, or set RAY_AUTH_TOKEN_PATH to another file."
        ) from error


def _write_token(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(32))
