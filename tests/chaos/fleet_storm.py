"""Nodes of a fleet are taken back under load, on a schedule drawn from a seed.

    python -m tests.chaos.fleet_storm --reclaims 20 --kills 5 --seed 7

Real Ray, Serve and HAProxy, echo engines on real Ray nodes, the real controller (`arriero fleet
up`), which is killed now and then as well. A reclaim has 120, 30 or 0 seconds of notice, times
`--scale`: the node is told to drain with that deadline, and its processes are killed at it. The
promises: every stream ends with exactly its tokens, the fleet is whole again with no hand on it,
no node is doubled and none is left over.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cluster.fleet_book import FleetBook
from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.local_ray import node_environment
from cluster.local_state import LocalState
from cluster.members import RayMembers
from cluster.policy.fleet import NodeId
from tests.support.platform import wait_until
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.streams import Stream
from tests.support.tiny_model import make_tiny_model

_TARGET = 2
_NOTICES_S = (120.0, 30.0, 0.0)
_N_STREAMS = 4
_WHOLE_S = 120.0
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
        self.n_answers = 0
        self.platform = platform
        self.book = FleetBook(folder / "fleet" / "storm")
        self.longest_pause_s = 0.0
        self.log = folder / "controller.log"
        self._file = file
        self._environ = environ
        self._rng = rng
        self._controller: subprocess.Popen[bytes] | None = None
        nodes = self.book.folder / "nodes"
        self._cloud = LocalProvisioner(
            "storm", [LocalZone("east", 1.0, 3.0, 8)], LocalNodeShape(), "", nodes, {}
        )
        self._members = RayMembers(platform.ray_address)
        self._stopping = threading.Event()
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._ask_on, args=(n,), daemon=True) for n in range(_N_STREAMS)
        ]

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
        """Take one serving node back, as a cloud does."""
        node = self._rng.choice(sorted(self._serving()))
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
        return wait_until(lambda: self._is_whole(without), _WHOLE_S, f"whole; {self._describe()}")

    def check(self) -> None:
        """Hold the streams to what was promised."""
        assert not self._errors, "; ".join(self._errors[:3])
        assert all(thread.is_alive() for thread in self._threads)

    def check_nodes(self) -> None:
        """Hold the nodes to the book: none is doubled, none is left over."""
        processes = {name for name, _ in self._cloud._processes()}
        booked = {entry.id for entry in self.book.load().entries}
        assert processes <= booked, (processes, booked)
        assert len(processes) <= _TARGET + 2

    @contextmanager
    def load(self) -> Iterator[None]:
        """Ask all the time."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join(60.0)

    def close(self) -> None:
        """End the controller; nodes end with the platform."""
        if self._controller is not None and self._controller.poll() is None:
            self.kill_controller()

    def _serving(self) -> list[NodeId]:
        return [entry.id for entry in self.book.load().entries if entry.is_ready]

    def _is_whole(self, without: NodeId | None) -> bool:
        time.sleep(0.3)
        serving = [node for node in self._serving() if node != without]
        engines = self.platform.ready().get("models", {}).get("tiny", {}).get("engines", [])
        n_ready = sum(engine["state"] == "ready" for engine in engines)
        return len(serving) >= _TARGET and n_ready >= _TARGET

    def _describe(self) -> str:
        tail = self.log.read_text().splitlines()[-12:] if self.log.exists() else []
        return "\n".join(tail)

    def _ask_on(self, n: int) -> None:
        rng = random.Random(n)
        while not self._stopping.is_set():
            words = "".join(f"w{rng.randrange(1000)} " for _ in range(rng.randint(3, 20)))
            n_tokens = rng.randint(20, 200)
            try:
                self._ask(words, n_tokens)
            except Exception as error:
                self._errors.append(f"{words!r}, {n_tokens} tokens: {error!r}")
                time.sleep(1.0)

    def _ask(self, words: str, n_tokens: int) -> None:
        """An echo engine says a prompt again and again, so the one right answer is known."""
        request = {"model": "tiny", "prompt": words, "max_tokens": n_tokens, "stream": True}
        stream = Stream(self.platform.url, request | {"return_token_ids": True})
        events = stream.finish(120.0)
        assert events[-1:] == ["[DONE]"], f"{stream.status}: {events[-1:]}"
        errors = [event for event in events if '"error"' in event]
        assert not errors, errors
        choices = [choice for event in stream.events() for choice in event["choices"]]
        found = [token for choice in choices for token in choice["token_ids"] or ()]
        prompt = next(c["prompt_token_ids"] for c in choices if c.get("prompt_token_ids"))
        expected = [prompt[i % len(prompt)] for i in range(n_tokens)]
        assert found == expected, f"{len(found)} tokens of {n_tokens}, or others"
        self.n_answers += 1
        self.longest_pause_s = max(self.longest_pause_s, stream.longest_gap_s())


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
            platform.mark, str(folder), platform.url, "", platform.ray_address, str(file)
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
        "name": "tiny",
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
        "most_spare": 1,
        "probe_every_s": 0.0,
        "start_up_s": 15.0,
        "drain_s": 10.0,
        "period_s": 0.5,
        "notice_s": 0.0,
        "provisioner": {"kind": "local", "cpus": _CPUS, "zones": zones},
    }
    many = {"max_engine_deaths": 1000, "max_engine_deaths_in_a_row": 1000}
    return {"models": [entry], "fleet": fleet, "limits": many, **SMALL}


def ride_out(
    storm: FleetStorm,
    notices_s: Sequence[float],
    kills: Callable[[int], bool],
    say: Callable[[str], None] = print,
) -> None:
    """Let reclaims happen one after the other, and hold the fleet to its promises after each."""
    for i, notice_s in enumerate(notices_s):
        node = storm.reclaim(notice_s)
        if kills(i):
            time.sleep(storm._rng.uniform(0.0, 3.0))
            storm.kill_controller()
            storm.start_controller()
        took_s = storm.wait_until_whole(without=node)
        storm.check()
        storm.check_nodes()
        killed = ", controller killed" if kills(i) else ""
        say(f"{i + 1}: {node} with {notice_s:g} s of notice{killed}: whole after {took_s:.1f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a storm of any length."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--reclaims", type=int, default=12)
    parser.add_argument("--kills", type=int, default=4, help="deaths of the controller among them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=0.1, help="of 120 and 30 s of notice")
    options = parser.parse_args(argv)
    rng = random.Random(options.seed)
    notices_s = [rng.choice(_NOTICES_S) * options.scale for _ in range(options.reclaims)]
    killed = set(rng.sample(range(options.reclaims), min(options.kills, options.reclaims)))
    folder = Path(tempfile.mkdtemp(prefix="fs-", dir="/tmp"))
    with fleet_storm_over(folder, options.seed, options.scale) as storm:
        print("whole; the storm begins", flush=True)
        with storm.load():
            time.sleep(2.0)
            ride_out(storm, notices_s, killed.__contains__)
        storm.check()
        print(
            f"{storm.n_answers} answers, 0 failed, 0 wrong, {options.reclaims} reclaims, "
            f"{len(killed)} deaths of the controller, longest pause {storm.longest_pause_s:.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
