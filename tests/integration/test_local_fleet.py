"""The controller over real Ray nodes of this machine: it fills, replaces and ends them."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.bootstrap import ROOT
from cluster.controller import Controller, Step
from cluster.fleet_book import DOWN, FleetBook
from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.local_ray import HOST, node_environment
from cluster.local_state import find_processes, new_mark, stop_processes
from cluster.machine import choose_free_port
from cluster.members import RayMembers
from cluster.policy.fleet import NodeId
from cluster.provisioner import ProvisionerAwayError
from serve_app.config_fleet import FleetSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

_SETTINGS = FleetSettings.model_validate(
    {
        "name": "f",
        "target": 2,
        "most_spare": 0,
        "probe_every_s": 0.0,
        "start_up_s": 10.0,
        "drain_s": 5.0,
        "period_s": 0.5,
        "provisioner": {"kind": "local", "zones": [{"name": "east", "spot_usd_per_h": 1.0}]},
    }
)


@dataclass
class Fleet:
    """A head, and what keeps nodes that join it."""

    mark: str
    book: FleetBook
    nodes: LocalProvisioner
    members: RayMembers
    told: list[str]
    address: str
    environ: dict[str, str]

    def controller(self, settings: FleetSettings) -> Controller:
        """A new one, as after a death."""
        return Controller(settings, self.nodes, self.members, self.book, self.told.append)

    def draw(self) -> NodeId:
        """One that serves and is to stay."""
        return min(entry.id for entry in self.book.load().entries if entry.is_ready)

    def run_until(self, is_so: Callable[[Step], bool], settings: FleetSettings = _SETTINGS) -> Step:
        """Steps until something is so."""
        give_up_s = time.monotonic() + 90.0
        controller = self.controller(settings)
        while time.monotonic() < give_up_s:
            with suppress(ProvisionerAwayError):
                step = controller.step()
                if is_so(step):
                    return step
            time.sleep(_SETTINGS.period_s)
        return pytest.fail(f"not so in time; {self.told}; {controller.preview()}")


def _serving(step: Step) -> set[NodeId]:
    return {entry.id for entry in step.entries if entry.is_ready}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    folder, mark = Path(tempfile.mkdtemp(prefix="lf-", dir="/tmp")), new_mark()
    port = choose_free_port(HOST, 6500, 6700)
    assert port is not None
    # Without tokens: this process may have loaded Ray before it could be told of one.
    environ = node_environment(os.environ, mark) | {"RAY_AUTH_MODE": "disabled"}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}"]
    command += [f"--node-ip-address={HOST}", "--include-dashboard=false", "--num-cpus=0"]
    command += [f"--temp-dir={folder / 'r'}", "--object-store-memory=80000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    zones = [LocalZone("east", 1.0, 3.0, 8), LocalZone("west", 1.1, 3.1, 8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)
        try:
            # To a file: Ray lives on, and would keep a pipe open.
            with (folder / "head.log").open("w") as log:
                subprocess.run(command, env=environ, stdout=log, stderr=log, check=True)
            address = f"{HOST}:{port}"
            nodes = LocalProvisioner(
                "f", zones, LocalNodeShape(), address, folder / "nodes", folder / "n", environ
            )
            book = FleetBook(folder / "fleet")
            yield Fleet(mark, book, nodes, RayMembers(address), [], address, environ)
        finally:
            stop_processes(mark)
            shutil.rmtree(folder, ignore_errors=True)


def test_nodes_join_up_to_the_target(fleet: Fleet) -> None:
    step = fleet.run_until(lambda step: len(_serving(step)) >= 2)
    assert {m.id for m in fleet.nodes.list_machines()} == {e.id for e in step.entries}


def test_everything_listens_on_loopback(fleet: Fleet) -> None:
    outside = [
        (process.name(), connection.laddr)
        for process in find_processes(fleet.mark)
        for connection in _listening(process)
        if not connection.laddr.ip.removeprefix("::ffff:").startswith("127.")
    ]
    assert outside == []


def test_node_that_is_killed_is_replaced_by_the_next_controller(fleet: Fleet) -> None:
    before = {machine.id for machine in fleet.nodes.list_machines()}
    victim = fleet.draw()
    fleet.nodes.take(victim)
    step = fleet.run_until(lambda step: len(_serving(step) - {victim}) >= 2)
    assert any(entry.id not in before for entry in step.entries)


def test_replacement_is_asked_for_while_the_drained_node_still_runs(fleet: Fleet) -> None:
    before = {machine.id for machine in fleet.nodes.list_machines()}
    victim = fleet.draw()
    fleet.members.drain(victim, 10.0, "the cloud takes it")
    fleet.run_until(lambda step: any(entry.id not in before for entry in step.entries))
    fleet.run_until(
        lambda step: len(_serving(step)) >= 2 and all(e.id != victim for e in step.entries)
    )
    assert victim not in {machine.id for machine in fleet.nodes.list_machines()}
    taken = {ended.entry.id for ended in fleet.book.read_ended() if ended.entry.is_taken}
    assert victim in taken


def test_node_comes_for_what_has_no_room(fleet: Fleet) -> None:
    settings = _SETTINGS.model_copy(update={"most_target": 6, "idle_s": 2.0})
    n_actors = len(list(fleet.nodes.list_machines())) + 1
    with _run_actors(fleet, n_actors) as driver:
        step = fleet.run_until(lambda step: len(_serving(step)) >= n_actors, settings)
        assert step.target == n_actors
        assert driver.stdout is not None
        places = json.loads(driver.stdout.readline())
    assert len(set(places)) == n_actors
    fleet.run_until(lambda step: step.target == _SETTINGS.target, settings)


def test_down_leaves_no_process(fleet: Fleet) -> None:
    fleet.book.order(DOWN, 2.0)
    fleet.run_until(lambda step: not step.entries)
    assert list(fleet.nodes._processes()) == []


@contextmanager
def _run_actors(fleet: Fleet, n: int) -> Iterator["subprocess.Popen[str]"]:
    """Have some actors want a processor each, for as long as the context lasts."""
    command = [sys.executable, "-m", "tests.support.ray_actors", fleet.address, str(n)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=fleet.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        try:
            yield driver
        finally:
            driver.kill()


def _listening(process: psutil.Process) -> list[Any]:
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return []
    return [each for each in connections if each.status == psutil.CONN_LISTEN]
