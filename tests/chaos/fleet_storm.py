"""Nodes of a fleet are taken back under load, on a schedule drawn from a seed.

    python -m tests.chaos.fleet_storm --reclaims 20 --kills 5 --seed 7 --cells 2

Real Ray, Serve and HAProxy, echo engines on real Ray nodes, the real controller (`arriero fleet
up`), which is killed now and then as well. With several cells each has all of that for itself, and
streams come through `arriero front`, whose controller is killed with the fleet's. A reclaim has
120, 30 or 0 seconds of notice, times `--scale`: the node is told to drain with that deadline, and
its processes are killed at it. The promises: every stream ends with exactly its tokens, the fleet
is whole again with no hand on it, no node is doubled and none is left over.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.fleet_book import FleetBook
from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.local_ray import node_environment
from cluster.local_state import LocalState
from cluster.members import RayMembers
from cluster.policy.fleet import NodeId
from serve_app.deployment_names import engine_of
from serve_app.names import ModelName
from tests.support.echo_load import EchoLoad
from tests.support.front_process import FrontProcess
from tests.support.platform import wait_until
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.tiny_model import make_tiny_model

_TARGET = 2
_MOST_SPARE = 1
_NOTICES_S = (120.0, 30.0, 0.0)
_MODEL = ModelName("tiny")
_ENGINE = engine_of(_MODEL)
_N_TENANTS, _N_STREAMS = 2, 2
"""Tenants of each cell, and streams of each tenant, all the time."""
_LENGTHS = (20, 200)
_WHOLE_S = 180.0
_CPUS = 3.0
"""Of each node, and nearly so many each engine asks for: none fits the head, one fits a node."""


class FleetStorm:
    """A platform whose engines are on a fleet's nodes.

    Args:
        platform: Ray and Serve.
        folder: For the fleet's files.
        file: The config file.
        environ: For the controller.
        rng: Draws who is hit.
    """

    def __init__(
        self,
        platform: RayPlatform,
        folder: Path,
        file: Path,
        environ: dict[str, str],
        rng: random.Random,
    ) -> None:
        self.platform = platform
        self.book = FleetBook(folder / "fleet" / "storm")
        self.log = folder / "controller.log"
        self._file = file
        self._environ = environ
        self._rng = rng
        self._controller: subprocess.Popen[bytes] | None = None
        nodes = self.book.folder / "nodes"
        self._cloud = LocalProvisioner(
            "storm", [LocalZone("east", 1.0, 3.0, 8)], LocalNodeShape(), "", nodes, nodes, {}
        )
        self._members = RayMembers(platform.ray_address)

    # --- events -----------------------------------------------------------------------------

    def start_controller(self) -> None:
        """Start `arriero fleet up`."""
        command = [sys.executable, "-m", "serve_app.cli", "fleet", "up", str(self._file)]
        with self.log.open("ab") as log:
            self._controller = subprocess.Popen(
                command, env=self._environ, stdout=log, stderr=subprocess.STDOUT
            )

    def kill_controller(self) -> None:
        """SIGKILL to the controller, at whatever it is doing."""
        assert self._controller is not None
        self._controller.send_signal(signal.SIGKILL)
        self._controller.wait()

    def reclaim(self, notice_s: float) -> NodeId:
        """Take one node back that has an engine, as a cloud does."""
        serving = set(self._serving())
        node = self._rng.choice(sorted(serving & self._nodes_with_engines()))
        if notice_s:
            self._members.drain(node, notice_s, "the cloud takes it")
            timer = threading.Timer(notice_s, self._cloud.take, (node,))
            timer.daemon = True
            timer.start()
        else:
            self._cloud.take(node)
        return node

    # --- promises ---------------------------------------------------------------------------

    def wait_until_whole(self, without: NodeId | None = None) -> float:
        """Wait until the target serves and every engine runs; return the seconds that took."""
        try:
            return wait_until(lambda: self._is_whole(without), _WHOLE_S, "whole")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self._describe()}") from error

    def check_nodes(self) -> None:
        """Hold the nodes to the book: none is doubled, none is left over."""
        processes = {name for name, _ in self._cloud._processes()}
        booked = {entry.id for entry in self.book.load().entries}
        assert processes <= booked, (processes, booked)
        staying = [entry for entry in self.book.load().entries if entry.leaves_s is None]
        assert len(staying) <= 2 * _TARGET + _MOST_SPARE, staying

    def close(self) -> None:
        """End the controller; nodes end with the platform."""
        if self._controller is not None and self._controller.poll() is None:
            self.kill_controller()

    def _serving(self) -> list[NodeId]:
        return [entry.id for entry in self.book.load().entries if entry.is_ready]

    def _is_whole(self, without: NodeId | None) -> bool:
        time.sleep(0.5)
        serving = {node for node in self._serving() if node != without}
        engines = self.platform.ready().get("models", {}).get(_MODEL, {}).get("engines", [])
        n_ready = sum(engine["state"] == "ready" for engine in engines)
        # The platform may not know yet that an engine is gone with its node; Ray knows.
        with_engines = serving & self._nodes_with_engines()
        return len(with_engines) >= _TARGET and n_ready >= _TARGET

    def _nodes_with_engines(self) -> set[NodeId]:
        names = self._members.names()
        return {names[node] for node in self.platform.nodes_of(_ENGINE) if node in names}

    def _describe(self) -> str:
        tail = self.log.read_text().splitlines()[-12:] if self.log.exists() else []
        return "\n".join([f"{self._serving()} serve, {self.platform.ready()}", *tail])


@contextmanager
def fleet_storm_over(folder: Path, seed: int, scale: float) -> Iterator[FleetStorm]:
    """Start a platform and a fleet, and wait until both are whole."""
    model = make_tiny_model(folder / "tiny", seed=1)
    state = folder / "state"
    state.mkdir()
    with RayPlatform() as platform:
        args = _settings(model, scale)
        platform.deploy(args)
        file = folder / "fleet.yaml"
        app = {"name": "arriero", "import_path": "serve_app.main:build", "args": args}
        file.write_text(yaml.safe_dump({"applications": [app]}))
        LocalState(
            platform.mark, str(platform.folder), platform.url, "", platform.ray_address, str(file)
        ).save(state / "local.json")
        environ = node_environment(os.environ, platform.mark)
        environ |= {"ARRIERO_STATE_DIR": str(state), "PYTHONPATH": os.getcwd()}
        storm = FleetStorm(platform, state, file, environ, random.Random(seed))
        try:
            storm.start_controller()
            storm.wait_until_whole()
            yield storm
        finally:
            storm.close()


def _settings(model: Path, scale: float) -> dict[str, Any]:
    engine = {"kind": "echo", "max_model_len": 512, "tokens_per_s": 20.0}
    entry = {
        "name": _MODEL,
        "source": {"kind": "local", "path": str(model)},
        "engine": engine,
        "accelerator": {"kind": "cpu", "cpus": _CPUS - 0.1},
        "replicas": {"min": _TARGET, "max": _TARGET},
        "drain_timeout_s": max(2.5, 20.0 * scale),
    }
    zones = [
        {"name": "east", "spot_usd_per_h": 1.0, "on_demand_usd_per_h": 3.0},
        {"name": "west", "spot_usd_per_h": 1.1, "on_demand_usd_per_h": 3.0},
    ]
    fleet = {
        "name": "storm",
        "target": _TARGET,
        "most_spare": _MOST_SPARE,
        "probe_every_s": 0.0,
        "start_up_s": 15.0,
        "drain_s": 10.0,
        "period_s": 0.5,
        "notice_s": 0.0,
        "provisioner": {"kind": "local", "cpus": _CPUS, "zones": zones},
    }
    many = {"max_engine_deaths": 1000, "max_engine_deaths_in_a_row": 1000}
    return {"models": [entry], "fleet": fleet, "limits": many, **SMALL}


@dataclass
class Weather:
    """All that things happen to.

    Attributes:
        storms: A cell each.
        front: Where streams come from with several cells.
        rng: Draws.
        loads: A tenant each.
    """

    storms: list[FleetStorm]
    front: FrontProcess | None
    rng: random.Random
    loads: list[EchoLoad] = field(init=False)

    def __post_init__(self) -> None:
        url = self.front.url if self.front else self.storms[0].platform.url
        self.loads = [
            EchoLoad(
                url, _MODEL, _N_STREAMS, self.rng, _LENGTHS, {"authorization": f"Bearer tenant-{i}"}
            )
            for i in range(_N_TENANTS * len(self.storms))
        ]

    def ride_out(self, notices_s: Sequence[float], killed: Collection[int]) -> None:
        """Let reclaims happen one after the other, and hold all to the promises after each.

        Args:
            notices_s: Of each.
            killed: During which of them controllers die.
        """
        for load in self.loads:
            load.start()
        time.sleep(2.0)
        for i, notice_s in enumerate(notices_s):
            storm = self.rng.choice(self.storms)
            node = storm.reclaim(notice_s)
            if i in killed:
                time.sleep(self.rng.uniform(0.0, 3.0))
                storm.kill_controller()
                storm.start_controller()
                if self.front:
                    self.front.replace_controller()
            took_s = storm.wait_until_whole(without=node)
            self.check()
            storm.check_nodes()
            where = f"cell {self.storms.index(storm)}: {node}"
            dead = ", controllers killed" if i in killed else ""
            print(
                f"{i + 1}: {where} with {notice_s:g} s of notice{dead}: whole after {took_s:.1f} s"
            )
        for load in self.loads:
            load.stop()
        self.check(are_over=True)

    def check(self, *, are_over: bool = False) -> None:
        """Hold the streams to what was promised."""
        for load in self.loads:
            assert not load.errors, "; ".join(load.errors[:3])
            assert are_over or load.is_alive


@contextmanager
def weather_over(folder: Path, seed: int, scale: float, n_cells: int) -> Iterator[Weather]:
    """Start cells, and a front where they are several, and wait until all are whole."""
    with ExitStack() as stack:
        storms = []
        for i in range(n_cells):
            own = folder / str(i)
            own.mkdir()
            storms.append(stack.enter_context(fleet_storm_over(own, seed + i, scale)))
        front = None
        if n_cells > 1:
            front = FrontProcess([storm.platform.url for storm in storms], folder)
            stack.callback(front.close)
            front.wait_until_up(n_cells)
        yield Weather(storms, front, random.Random(seed))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a storm of any length."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--reclaims", type=int, default=12)
    parser.add_argument("--kills", type=int, default=4, help="deaths of controllers among them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=0.1, help="of 120 and 30 s of notice")
    parser.add_argument("--cells", type=int, default=1, help="behind one front")
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    notices_s = [rng.choice(_NOTICES_S) * options.scale for _ in range(options.reclaims)]
    killed = set(rng.sample(range(options.reclaims), min(options.kills, options.reclaims)))
    folder = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))
    with weather_over(folder, options.seed, options.scale, options.cells) as weather:
        print("whole; the storm begins", flush=True)
        weather.ride_out(notices_s, killed)
        print(
            f"{sum(load.n_answers for load in weather.loads)} answers, 0 failed, 0 wrong, "
            f"{options.reclaims} reclaims, {len(killed)} deaths of controllers, "
            f"longest pause {max(load.longest_pause_s for load in weather.loads):.1f} s"
        )
    shutil.rmtree(folder)  # kept where it failed, for the controllers' logs
    return 0


if __name__ == "__main__":
    sys.exit(main())
