"""How soon a node comes for an actor that has no room.

    RAY_AUTH_MODE=disabled python -m bench.node_demand --nodes 3

Twice with the same nodes, real Ray nodes of this machine: by the fleet's controller, and by Ray's
own autoscaler with an external node provider. Both look every five seconds.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray as untyped_ray
import yaml

from bench.report import describe_run, print_table
from cluster.controller import Controller
from cluster.fleet_book import FleetBook
from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.local_ray import HOST, node_environment
from cluster.local_state import new_mark, stop_processes
from cluster.machine import choose_free_port
from cluster.members import RayMembers
from serve_app.config_fleet import FleetSettings

ray: Any = untyped_ray
_PERIOD_S = 5.0
_IDLE_S = 60.0
_MOST = 5
_GIVE_UP_S = 120.0


class Head:
    """A Ray head without processors, and the folder of the nodes that join it."""

    def __init__(self, scales_itself: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nd-", dir="/tmp"))
        self._mark = new_mark()
        port = choose_free_port(HOST, 6700, 6900)
        self.address = f"{HOST}:{port}"
        self._environ = node_environment(os.environ, self._mark)
        self._environ |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.getcwd()}
        self._environ |= {"RAY_enable_autoscaler_v2": "1"} if scales_itself else {}
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}"]
        command += [f"--node-ip-address={HOST}", "--include-dashboard=false", "--num-cpus=0"]
        command += [f"--temp-dir={self.folder / 'r'}", "--object-store-memory=80000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
        if scales_itself:
            command.append(f"--autoscaling-config={self._write_scaling()}")
        with (self.folder / "head.log").open("w") as log:
            subprocess.run(command, env=self._environ, stdout=log, stderr=log, check=True)

    def nodes(self) -> LocalProvisioner:
        """Return who starts and lists nodes."""
        zone, folder = LocalZone("east", 1.0, None, 8), self.folder / "nodes"
        return LocalProvisioner(
            "f", [zone], LocalNodeShape(), self.address, folder, folder / "n", self._environ
        )

    def stop(self) -> None:
        """End it all."""
        stop_processes(self._mark)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_scaling(self) -> Path:
        provider = {
            "type": "external",
            "module": "bench.node_provider.FleetNodeProvider",
            "head": self.address,
            "folder": str(self.folder / "nodes"),
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        worker = {
            "resources": {"CPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": _MOST,
        }
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        empty: dict[str, Any] = {
            name: []
            for name in (
                *("initialization_commands", "setup_commands", "head_setup_commands"),
                *("worker_setup_commands", "head_start_ray_commands"),
                *("worker_start_ray_commands", "cluster_synced_files"),
                *("rsync_exclude", "rsync_filter"),
            )
        }
        content = {
            "cluster_name": "f",
            "max_workers": _MOST,
            "idle_timeout_minutes": _IDLE_S / 60,
            "upscaling_speed": 1.0,
            "provider": provider,
            "auth": {"ssh_user": "nobody"},
            "available_node_types": {"ray.head.default": head, "node": worker},
            "head_node_type": "ray.head.default",
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **empty,
        }
        file = self.folder / "scaling.yaml"
        file.write_text(yaml.safe_dump(content))
        return file


@contextmanager
def keep(head: Head) -> Iterator[None]:
    """Run the fleet's controller."""
    settings = FleetSettings.model_validate(
        {
            "name": "f",
            "target": 0,
            "most_target": _MOST,
            "most_spare": 0,
            "idle_s": _IDLE_S,
            "start_up_s": 5.0,
            "drain_s": 5.0,
            "period_s": _PERIOD_S,
            "provisioner": {"kind": "local", "zones": [{"name": "east", "spot_usd_per_h": 1.0}]},
        }
    )
    book, members = FleetBook(head.folder / "fleet"), RayMembers(head.address)
    controller = Controller(settings, head.nodes(), members, book, lambda line: None)
    is_over = threading.Event()
    thread = threading.Thread(target=controller.run, args=(lambda step: is_over.is_set(),))
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(_GIVE_UP_S)


def measure(head: Head, n_nodes: int) -> list[float]:
    """Return the seconds until an actor ran that had no room, one after the other."""
    ray.init(address=head.address, logging_level="ERROR")

    class Worker:
        def ping(self) -> bool:
            return True

    actors, waits_s = [], []
    for _ in range(n_nodes):
        started_s = time.monotonic()
        actors.append(ray.remote(num_cpus=1)(Worker).remote())
        ray.get(actors[-1].ping.remote(), timeout=_GIVE_UP_S)
        waits_s.append(time.monotonic() - started_s)
    ray.shutdown()
    return waits_s


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--nodes", type=int, default=3, choices=range(1, _MOST + 1))
    options = parser.parse_args()
    print(describe_run(f"make bench-node-demand ARGS='--nodes {options.nodes}'"))
    rows: list[tuple[str, ...]] = []
    for name, scales_itself in (("the controller", False), ("Ray's autoscaler", True)):
        head = Head(scales_itself)
        try:
            if scales_itself:
                found = measure(head, options.nodes)
            else:
                with keep(head):
                    found = measure(head, options.nodes)
        finally:
            head.stop()
        rows.append(
            (name, *(", ".join(f"{x:.1f}" for x in each) for each in zip(*found, strict=True)))
        )
    print_table("A node for an actor without room", ("by", "until the actor runs, s"), rows)


if __name__ == "__main__":
    main()
