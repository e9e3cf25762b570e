"""What `bench.node_loop` compares: a head each, and the process that decides about its nodes.

Everything listens on the loopback address; `NodeSystem.listening_outside` looks.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.node_actors import Actors
from bench.node_autoscaling import HEAD, HEAD_KIND, autoscaling_config
from bench.node_cell import NodeCell
from cluster.bootstrap import ROOT
from cluster.local_ray import HOST, choose_ports, node_environment, ray_start_command
from cluster.local_state import find_processes, new_mark, stop_processes
from cluster.members import RayMembers
from cluster.policy.fleet import NodeId
from cluster.provisioner import ProvisionerAwayError

OURS, OURS_SOONER, RAYS, RAYS_NEXT = "ours", "ours-5s", "ray", "ray-v2"
WAYS = (OURS, OURS_SOONER, RAYS, RAYS_NEXT)
"""Ours as it is by default, and with another period; Ray's as `ray start` has it by default, and
the one that `ray up` and KubeRay have."""
_SOONER_S = 5.0
_LOOK_S = 0.1
_START_S = 30.0


def use_token() -> None:
    """Has this process and all that it starts use a token of Ray that nobody else has.

    To be called before Ray is imported.
    """
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class NodeSystem:
    """A head without processors, and what brings nodes to it.

    Args:
        way: Of `WAYS`.
        cell: The nodes.
        mark: By which its processes are found again.
        environ: Of its processes.
    """

    def __init__(self, way: str, cell: NodeCell, mark: str, environ: Mapping[str, str]) -> None:
        self.way = way
        self.cell = cell
        self._mark = mark
        self._environ = environ
        self._members = RayMembers(cell.head)
        self._own: list[subprocess.Popen[bytes]] = []
        self.actors = Actors(cell.head, Path(cell.folder) / "a", environ)
        if way in (OURS, OURS_SOONER):
            period = [str(_SOONER_S)] if way == OURS_SOONER else []
            program = [sys.executable, "-m", "bench.node_controller"]
            self._start([*program, str(cell.save()), *period], environ)
        wait_until(lambda: bool(self.deciders()), _START_S)

    def joined(self) -> set[NodeId]:
        """The nodes that Ray counts as alive."""
        try:
            return set(self._members.names().values())
        except ProvisionerAwayError:
            return set()

    def deciders(self) -> list[psutil.Process]:
        """The processes that decide: one, or none."""
        part = "bench.node_controller" if self.way in (OURS, OURS_SOONER) else "/monitor.py"
        return [p for p in find_processes(self._mark) if _has_part(p, part)]

    def kill_decider(self) -> Callable[[], None]:
        """SIGKILL to who decides; returns what starts it again, as a supervisor would."""
        [decider] = self.deciders()
        command, environ = decider.cmdline(), decider.environ()
        decider.kill()
        psutil.wait_procs([decider], timeout=_START_S)
        return lambda: self._start(command, environ)

    def listening_outside(self) -> list[str]:
        """The addresses beyond this machine that any of its processes listens at."""
        return [
            f"{process.name()} at {connection.laddr}"
            for process in find_processes(self._mark)
            for connection in _listening(process)
            if not connection.laddr.ip.removeprefix("::ffff:").startswith("127.")
        ]

    def close(self) -> None:
        """Ends every process."""
        self.actors.close()
        stop_processes(self._mark)
        for process in self._own:
            process.wait()

    def _start(self, command: list[str], environ: Mapping[str, str]) -> None:
        with (Path(self.cell.folder) / "decider.log").open("ab") as log:
            self._own.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=dict(environ),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )


@contextmanager
def node_system(way: str, idle_s: float, start_s: float = 0.0) -> Iterator[NodeSystem]:
    """Starts a head with a way to bring nodes, and ends all of it."""
    # Short, because a socket's path may have no more than 107 characters.
    folder, mark, ports = (
        Path(tempfile.mkdtemp(prefix="nl-", dir="/tmp")),
        new_mark(),
        choose_ports(),
    )
    cell = NodeCell(str(folder), f"{HOST}:{ports.gcs}", idle_s, start_s)
    environ = node_environment(os.environ, mark) | {
        "AUTOSCALER_METRIC_PORT": str(ports.monitor_metrics),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "PYTHONPATH": str(ROOT),
    }
    head, command = dict(environ), [*ray_start_command(ports, folder), "--num-cpus=0"]
    command += ["--include-dashboard=false", "--object-store-memory=80000000"]
    if way in (RAYS, RAYS_NEXT):
        file = folder / "autoscaling.yaml"
        file.write_text(yaml.safe_dump(autoscaling_config(cell)))
        command.append(f"--autoscaling-config={file}")
    if way == RAYS_NEXT:
        head |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD}
        head |= {"RAY_NODE_TYPE_NAME": HEAD_KIND}
    system = None
    try:
        with (folder / "head.log").open("w") as log:
            # To a file: Ray lives on, and would keep a pipe open.
            subprocess.run(
                command, env=head, stdout=log, stderr=log, check=True, start_new_session=True
            )
        system = NodeSystem(way, cell, mark, environ)
        yield system
    finally:
        if system is not None:
            system.close()
        stop_processes(mark)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(is_so: Callable[[], bool], most_s: float) -> bool:
    """Looks until something is so; false where it is not so in time."""
    give_up_s = time.monotonic() + most_s
    while not is_so():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(_LOOK_S)
    return True


def _has_part(process: psutil.Process, part: str) -> bool:
    try:
        return any(word.endswith(part) for word in process.cmdline())
    except psutil.Error:
        return False


def _listening(process: psutil.Process) -> list[Any]:
    with suppress(psutil.Error):
        return [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return []
