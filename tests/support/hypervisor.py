"""Machines for an AWS that moto plays: what it says is running, runs.

Each instance becomes namespaces of this machine with a disk, an sshd and an address of their own,
joined by a bridge that leads nowhere else. The keys are those of its user data, as cloud-init would
have it. At 169.254.169.254 they find instance metadata, with the notice of a reclaim. What moto no
longer lists is killed.

To be used in network, mount and pid namespaces of its own, as root: `make test-vms`.
"""

import base64
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psutil
import yaml

from tests.support.metadata_server import Aws, MetadataServer
from tests.support.moto_cloud import list_instances
from tests.support.vm_image import HOME, USER, shared_folders

NETWORK = "10.77"
_GATEWAY = f"{NETWORK}.255.1"
_METADATA = "169.254.169.254"
_BRIDGE = "vms"
_BOOT = Path(__file__).with_name("vm_boot.sh")
_LOOK_S = 0.5


@dataclass(frozen=True)
class Vm:
    """One machine that runs.

    Attributes:
        instance: moto's id.
        region: moto's region.
        zone: Where it is said to be.
        address: Its own, on the bridge.
        process: Whose end is the machine's.
    """

    instance: str
    region: str
    zone: str
    address: str
    process: "subprocess.Popen[bytes]"


class Hypervisor:
    """Starts and kills machines.

    Args:
        endpoint: Of moto's AWS.
        image: Disk to start from.
        folder: For disks and logs.
    """

    def __init__(self, endpoint: str, image: Path, folder: Path) -> None:
        self._endpoint = endpoint
        self._image = image
        self._folder = folder
        self._vms: dict[str, Vm] = {}
        self._metadata: MetadataServer | None = None
        self._is_over = threading.Event()
        self.started: list[str] = []

    def vms(self) -> Mapping[str, Vm]:
        """Return the machines that run, by address."""
        return dict(self._vms)

    def reclaim(self, address: str, notice_s: float) -> None:
        """Take a machine back as AWS does: a notice in its metadata, then the end."""
        vm = self._vms[address]
        assert self._metadata is not None
        at = datetime.now(UTC) + timedelta(seconds=notice_s)
        said = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._metadata.actions[address] = said
        timer = threading.Timer(notice_s, self._terminate, (vm,))
        timer.daemon = True
        timer.start()

    @contextmanager
    def run(self) -> Iterator["Hypervisor"]:
        """Look at moto again and again, while the context lasts. There has to be a bridge."""
        self._metadata = MetadataServer(Aws, (_METADATA, 80))
        threads = [
            threading.Thread(target=self._metadata.serve_forever, args=(0.05,)),
            threading.Thread(target=self._look),
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            self._metadata.shutdown()
            for thread in threads:
                thread.join()
            self._metadata.server_close()
            for address in list(self._vms):
                self._stop(address)

    def _look(self) -> None:
        while not self._is_over.wait(_LOOK_S):
            there = {found["address"]: found for found in list_instances(self._endpoint)}
            for address in self._vms.keys() - there.keys():
                self._stop(address)
            for address in sorted(there.keys() - self._vms.keys()):
                self._start(there[address])

    def _start(self, found: Mapping[str, str]) -> None:
        address = found["address"]
        disk = self._folder / f"{found['id']}"
        _init(disk / "changes", self._user_data(found))
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "VM_SHARED": " ".join(shared_folders()),
            "VM_GATEWAY": _GATEWAY,
        }
        kinds = ["--mount", "--pid", "--uts", "--ipc", "--net"]
        command = ["unshare", *kinds, "--fork", "--kill-child", "bash", str(_BOOT)]
        with (disk / "log").open("w") as log:
            process = subprocess.Popen(
                [*command, str(self._image), str(disk), address],
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._vms[address] = Vm(found["id"], found["region"], found["zone"], address, process)
        self.started.append(found["zone"])
        _plug_in(process.pid, f"v{len(self.started)}")

    def _stop(self, address: str) -> None:
        vm = self._vms.pop(address)
        vm.process.kill()
        vm.process.wait()
        if self._metadata is not None:
            self._metadata.actions.pop(address, None)

    def _terminate(self, vm: Vm) -> None:
        ec2 = boto3.client("ec2", region_name=vm.region, endpoint_url=self._endpoint)
        ec2.terminate_instances(InstanceIds=[vm.instance])

    def _user_data(self, found: Mapping[str, str]) -> dict[str, Any]:
        ec2 = boto3.client("ec2", region_name=found["region"], endpoint_url=self._endpoint)
        answer = ec2.describe_instance_attribute(InstanceId=found["id"], Attribute="userData")
        encoded = answer["UserData"].get("Value", "")
        data: dict[str, Any] = yaml.safe_load(base64.b64decode(encoded)) or {}
        return data


def _init(changes: Path, user_data: Mapping[str, Any]) -> None:
    """Do what cloud-init does with user data, as far as it concerns files."""
    for file in user_data.get("write_files", []):
        path = changes / str(file["path"]).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file["content"])
    [user] = user_data["users"]
    assert user["name"] == USER, user
    keys = changes / HOME.relative_to("/") / ".ssh" / "authorized_keys"
    keys.parent.mkdir(parents=True, mode=0o700)
    keys.write_text("\n".join(user["ssh_authorized_keys"]) + "\n")
    home = changes / HOME.relative_to("/")
    subprocess.run(["chown", "-R", "1000:1000", str(home)], check=True)


def make_bridge() -> None:
    """Bring this namespace up: what is no machine on its bridge is unreachable at once."""
    for command in (
        "link set lo up",
        f"link add {_BRIDGE} type bridge",
        f"addr add {_GATEWAY}/16 dev {_BRIDGE}",
        f"addr add {_METADATA}/32 dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
        "route add unreachable default",
    ):
        _ip(command)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _plug_in(pid: int, name: str) -> None:
    give_up_s = time.monotonic() + 10.0
    while not (children := psutil.Process(pid).children()):
        assert time.monotonic() < give_up_s, "the machine did not start"
        time.sleep(0.02)
    _ip(f"link add {name} type veth peer name eth0 netns {children[0].pid}")
    _ip(f"link set {name} master {_BRIDGE} up")


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)
