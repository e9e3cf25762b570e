"""A fleet's whole path on "VMs" of this machine: launch, ssh, set-up, Ray, requests, reclaims.

SkyPilot's API server, optimiser, AWS provisioner and ssh are real, and so is all that runs on the
machines: SkyPilot's runtime, the set-up and run commands of sky/cell.yaml, Ray, Serve and the
platform. AWS is moto's, a machine is a few namespaces (tests/support/hypervisor.py). Needs root;
with `make test-vms`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.fleet_book import FleetBook
from cluster.policy.reconcile import Entry
from serve_app.keys import FreshKey, make_key
from tests.support.echo_load import check_echo, make_request
from tests.support.hypervisor import NETWORK, Hypervisor, make_bridge
from tests.support.platform import wait_until
from tests.support.ray_platform import SMALL
from tests.support.settings import write_model
from tests.support.sky_cloud import SkyCloud, run_sky_cloud
from tests.support.streams import Stream
from tests.support.vm_image import copy_repository, ensure_image, wheels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not os.environ.get("ARRIERO_VMS"), reason="needs root and five gigabytes: make test-vms"
    ),
]

_LAUNCH_S = 600.0
_NOTICE_S = 120.0
"""As AWS gives it."""
_MODEL = "tiny"


@dataclass
class VmFleet:
    """One cell that is kept running on machines of this machine.

    Attributes:
        cloud: SkyPilot and moto.
        machines: What runs them.
        repository: A copy, whose sky/cell.yaml asks for CPUs.
        key: Opens the cells.
    """

    cloud: SkyCloud
    machines: Hypervisor
    repository: Path
    key: FreshKey

    @property
    def file(self) -> Path:
        """The fleet's config file."""
        return self.repository / "configs" / "vm-fleet.yaml"

    @property
    def environ(self) -> dict[str, str]:
        """For commands."""
        return self.cloud.environ | {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4}

    def ask(self, command: str, *options: str) -> str:
        """Runs an `arriero fleet` command to its end."""
        done = subprocess.run(
            [*_ARRIERO, command, str(self.file), *options],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def up(self) -> Iterator[None]:
        """Keeps the fleet, while the context lasts."""
        with (self.cloud.folder / "up.log").open("a") as log:
            process = subprocess.Popen(
                [*_ARRIERO, "up", str(self.file)], env=self.environ, stdout=log, stderr=log
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    def wait_for_cell(self, without: str = "") -> Entry:
        """Waits for a cell that serves, other than one."""
        book = FleetBook(self.repository / "state" / "fleet" / "vms")

        def find() -> Entry | None:
            entries = book.load().entries
            return next((e for e in entries if e.is_ready and e.id != without), None)

        try:
            wait_until(lambda: find() is not None, _LAUNCH_S, "a cell serves")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self._tell()}") from error
        found = find()
        assert found is not None
        return found

    def _tell(self) -> str:
        """Returns how the logs of the controller and of each machine end."""
        logs = [self.cloud.folder / "up.log", *(self.cloud.folder / "vms").glob("*/log")]
        ends = ["\n".join(log.read_text(errors="replace").splitlines()[-12:]) for log in logs]
        return "\n\n".join(f"{log}:\n{end}" for log, end in zip(logs, ends, strict=True))

    def count_reclaims(self) -> dict[str, int]:
        """By zone, as `arriero fleet status` tells it."""
        counted: dict[str, int] = json.loads(self.ask("status", "--json"))["reclaims"]
        return counted

    def address_of(self, entry: Entry) -> str:
        """Where the one machine in an entry's zone is reached."""
        zone = entry.zone.rpartition("/")[2]
        [vm] = [vm for vm in self.machines.vms().values() if vm.zone == zone]
        return vm.address

    def check_answer(self, address: str) -> None:
        """Asks a cell, and holds its answer to what an echo engine says."""
        request = make_request(_MODEL, "one two three ", 40) | {"return_token_ids": True}
        bearer = f"Bearer {self.key.text}"
        stream = Stream(f"http://{address}:8000", request, authorization=bearer)
        stream.finish(60.0)
        check_echo(stream.events(), 40)


_ARRIERO = [sys.executable, "-m", "serve_app.cli", "fleet"]


@pytest.fixture(scope="module")
def fleet() -> Iterator[VmFleet]:
    image, key = ensure_image(), make_key()
    make_bridge()
    with run_sky_cloud(NETWORK) as cloud:
        shutil.copytree(wheels(image), cloud.home / ".sky" / "wheels")
        repository = cloud.folder / "repository"
        copy_repository(repository)
        _ask_for_cpus(repository / "sky" / "cell.yaml")
        _write_config(repository / "configs" / "vm-cell.yaml", _cell(key.hash), host="0.0.0.0")
        _write_config(
            repository / "configs" / "vm-fleet.yaml", _fleet(cloud.python, repository / "state")
        )
        disks = cloud.folder / "vms"
        with Hypervisor(cloud.endpoint, image, disks).run() as machines:
            yield VmFleet(cloud, machines, repository, key)


def _ask_for_cpus(file: Path) -> None:
    """Cut the cell down to what this machine can play; commands stay, but for the profile."""
    task = yaml.safe_load(file.read_text())
    task["resources"] = {"any_of": [{"infra": "aws", "cpus": 2, "use_spot": True}], "ports": 8000}
    assert "PROFILE=gpu" in task["setup"]
    task["setup"] = task["setup"].replace("PROFILE=gpu", "PROFILE=cpu")
    file.write_text(yaml.safe_dump(task))


def _cell(hashed: str) -> dict[str, Any]:
    accelerator = {"kind": "cpu", "cpus": 0.5}
    return {
        "models": [write_model(_MODEL, accelerator=accelerator)],
        "auth": {"kind": "keys"},
        "tenants": [{"id": "t", "keys": [{"hash": hashed}]}],
        **SMALL,
    }


def _fleet(python: Path, state: Path) -> dict[str, Any]:
    """One spot cell; the budget leaves no room for an on-demand one beside it."""
    provisioner = {
        "kind": "skypilot",
        "file": "../sky/cell.yaml",
        "python": str(python),
        "envs": {"ARRIERO_CONFIG": "configs/vm-cell.yaml"},
    }
    fleet = {
        "name": "vms",
        "target": 1,
        "goal": 0.9,
        "most_spare": 0,
        "probe_every_s": 0.0,
        "start_up_s": 180.0,
        "period_s": 2.0,
        "drain_s": 5.0,
        "budget": {"usd_per_h": 0.06},
        "provisioner": provisioner,
    }
    return {"fleet": fleet, "store": {"state_dir": str(state)}}


def _write_config(file: Path, args: dict[str, Any], host: str = "127.0.0.1") -> None:
    application = {"name": "arriero", "import_path": "serve_app.main:build", "args": args}
    content = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": 8000},
        "applications": [application],
    }
    file.write_text(yaml.safe_dump(content))


def test_cell_is_launched_serves_is_taken_and_comes_back(fleet: VmFleet) -> None:
    plan = json.loads(fleet.ask("plan", "--json"))
    assert {row["zone"].split("/")[0] for row in plan["nodes"]} == {"aws"}
    with fleet.up():
        began_s = time.monotonic()
        first = fleet.wait_for_cell()
        print(f"{first.id} in {first.zone} serves after {time.monotonic() - began_s:.0f} s")
        address = fleet.address_of(first)
        fleet.check_answer(address)
        fleet.machines.reclaim(address, _NOTICE_S)
        taken_s, ends_s = time.monotonic(), time.time() + _NOTICE_S
        second = fleet.wait_for_cell(without=first.id)
        print(f"{second.id} in {second.zone} serves {time.monotonic() - taken_s:.0f} s later")
        assert second.asked_s < ends_s, "it was asked for at the death, not at the notice"
        # The next cell may serve before the first one's notice is over.
        wait_until(
            lambda: address not in fleet.machines.vms(), _NOTICE_S + 60.0, "the first is taken"
        )
        fleet.check_answer(fleet.address_of(second))
    told = json.loads(fleet.ask("status", "--json"))
    assert told["reclaims"] == {first.zone: 1}
    fleet.ask("down", "--yes")
    wait_until(lambda: not fleet.machines.vms(), 60.0, "no machine is left")
