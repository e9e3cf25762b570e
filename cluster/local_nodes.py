"""Nodes on this machine: each is a real Ray node, a process that joins a running head.

For trying a fleet out, and for tests. Zones are names with prices and room. A node's process
carries its name in its environment and goes on when whoever asked for it has died; what was asked
for is a file, written before the process is started.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.bootstrap import ROOT
from cluster.local_ray import HOST
from cluster.machine import choose_free_port
from cluster.members import NODE_LABEL
from cluster.policy.fleet import Market, NodeId, Offer, ZoneId
from cluster.policy.reconcile import Machine, MachineState

_NAME = "ARRIERO_FLEET_NODE"
_OBJECT_STORE_BYTES = 80 << 20
_STOP_S = 10.0


@dataclass(frozen=True)
class LocalZone:
    """A zone of this machine.

    Attributes:
        name: After `local/`.
        spot_usd_per_h: What a spot node is said to cost; None where there is no spot market.
        on_demand_usd_per_h: What another node is said to cost.
        room: Nodes that it has at most.
    """

    name: str
    spot_usd_per_h: float | None
    on_demand_usd_per_h: float | None
    room: int


@dataclass(frozen=True)
class LocalNodeShape:
    """What a node says that it has.

    Attributes:
        cpus: Processors.
        resources: Others, by Ray's names.
        start_s: Seconds before it starts, as a cloud takes its time.
    """

    cpus: float = 1.0
    resources: Mapping[str, float] | None = None
    start_s: float = 0.0


class LocalProvisioner:
    """Ray nodes as processes.

    Args:
        fleet: What every node's name begins with.
        zones: Where nodes may be.
        shape: What each has.
        head: HOST:PORT of Ray's head.
        folder: For what was asked for, and logs. One fleet, one folder.
        ray_folder: For Ray's own files and sockets; its path is short, as sockets' have to be.
        environ: Of the nodes' processes.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        fleet: str,
        zones: Sequence[LocalZone],
        shape: LocalNodeShape,
        head: str,
        folder: Path,
        ray_folder: Path,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fleet = fleet
        self._zones = {ZoneId(f"local/{zone.name}"): zone for zone in zones}
        self._shape = shape
        self._head = head
        self._folder = folder
        self._ray_folder = ray_folder
        self._environ = environ
        self._clock = clock

    def list_offers(self) -> Sequence[Offer]:
        """Return the zones' prices as they were set."""
        return [
            Offer(name, "local", str(name), zone.spot_usd_per_h, zone.on_demand_usd_per_h)
            for name, zone in self._zones.items()
        ]

    def remarks(self) -> Sequence[str]:
        """Return nothing: all that is needed is here."""
        return ()

    def describe_kind(self, zone: ZoneId, market: Market) -> str:
        """Return what every node has."""
        resources = {"CPU": self._shape.cpus, **(self._shape.resources or {})}
        return ", ".join(f"{name} {amount:g}" for name, amount in resources.items())

    def list_machines(self) -> Sequence[Machine]:
        """Return what was asked for and what has become of it, by the processes that run."""
        alive = {name for name, _ in self._processes()}
        return [self._machine(asked, alive) for asked in self._asked()]

    def launch(self, node: NodeId, zone: ZoneId, market: Market) -> None:
        """Start a Ray node, unless this name was asked for before, or the zone is full."""
        with self._only_one():
            if self._file(node).exists():
                return
            used = [m for m in self.list_machines() if m.state in ("starting", "up")]
            is_full = sum(m.zone == zone for m in used) >= self._room(zone)
            asked = {"id": node, "zone": zone, "market": market, "asked_s": self._clock()}
            _write(self._file(node), asked | {"refusal": "stock" if is_full else None})
            if not is_full:
                self._start(node)

    def end(self, node: NodeId) -> None:
        """Stop a node's processes and forget that it was asked for."""
        with self._only_one():
            self.take(node)
            shutil.rmtree(self._temporary(node), ignore_errors=True)
            self._file(node).unlink(missing_ok=True)

    def take(self, node: NodeId) -> None:
        """Kill a node's processes at once, as a cloud does that takes it back."""
        roots = [process for name, process in self._processes() if name == node]
        family = {p.pid: p for root in roots for p in [root, *_children(root)]}
        for process in family.values():
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(list(family.values()), timeout=_STOP_S)

    def close(self) -> None:
        """Let nothing go: nodes live in processes of their own."""

    def set_room(self, zone: ZoneId, room: int | None) -> None:
        """Say how many nodes a zone has from now on; None for what was set first."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "room.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        _write(file, {**known, zone: room})

    def _room(self, zone: ZoneId) -> int:
        file = self._folder / "room.json"
        changed: int | None = json.loads(file.read_text()).get(zone) if file.exists() else None
        if zone not in self._zones:
            return 0
        return self._zones[zone].room if changed is None else changed

    def _machine(self, asked: Mapping[str, Any], alive: set[str]) -> Machine:
        state: MachineState = "gone"
        text = ""
        if asked["refusal"] is not None:
            state, text = "refused", f"{asked['zone']} has no room"
        elif asked["id"] in alive:
            is_late = self._clock() < asked["asked_s"] + self._shape.start_s
            state = "starting" if is_late else "up"
        return Machine(
            NodeId(asked["id"]),
            ZoneId(asked["zone"]),
            asked["market"],
            state,
            asked["asked_s"],
            asked["refusal"],
            text,
            HOST,
        )

    def _start(self, node: NodeId) -> None:
        """Start the node as nobody's child, as it outlives whoever asks for it."""
        ray = [sys.executable, "-m", "cluster.local_node", *self._arguments(node)]
        script = f'{{ sleep {self._shape.start_s:g}; exec "$@"; }} &'
        with (self._folder / f"{node}.log").open("w") as log:
            subprocess.run(
                ["sh", "-c", script, "sh", *ray],
                env={**self._environ, _NAME: f"{self._folder}:{node}"},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                check=True,
            )

    def _arguments(self, node: NodeId) -> list[str]:
        # Nodes that start at once must not find the same port free for their agents.
        first = 53_000 + int(node.rpartition("-")[2]) % 500 * 10
        agent = choose_free_port(HOST, first, first + 9) or 0
        return [
            "start",
            "--block",
            f"--address={self._head}",
            f"--node-ip-address={HOST}",
            # Ray looks for names of sockets that nobody has yet: nodes that start at once in one
            # folder find the same, and one of them hangs.
            f"--temp-dir={self._temporary(node)}",
            f"--num-cpus={self._shape.cpus:g}",
            "--num-gpus=0",
            f"--resources={json.dumps(dict(self._shape.resources or {}))}",
            f"--labels={NODE_LABEL}={node}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--dashboard-agent-listen-port={agent}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--disable-usage-stats",
            "--log-color=false",
        ]

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """Yield every process of this fleet's nodes, whoever started it."""
        prefix = f"{self._folder}:"
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                name = process.environ().get(_NAME, "")
            except (psutil.Error, OSError):
                continue
            if name.startswith(prefix):
                yield name.removeprefix(prefix), process

    def _asked(self) -> Iterator[dict[str, Any]]:
        for file in sorted(self._folder.glob(f"{self._fleet}-*.json")):
            try:
                yield json.loads(file.read_text())
            except (OSError, ValueError):
                continue  # ended this moment

    def _file(self, node: NodeId) -> Path:
        return self._folder / f"{node}.json"

    def _temporary(self, node: NodeId) -> Path:
        return self._ray_folder / hashlib.sha256(node.encode()).hexdigest()[:8]

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _write(file: Path, content: Mapping[str, Any]) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(file)
