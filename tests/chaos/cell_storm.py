"""Whole cells die under load, without a word, and come back.

    python -m tests.chaos.cell_storm --deaths 6 --seed 7

Three real Rays with real Serves: a cell of gateways, and two with echo engines, behind a real
`arriero front` with its bank, whose controller is killed now and then. A death is SIGKILL to every
process of a cell with engines, its Ray head, gateways and router included; then it is started
again. The promises: every stream ends with exactly its tokens, and the cell serves again with no
hand on its neighbours.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cluster.machine import choose_free_port
from serve_app.keys import make_key
from serve_app.names import ModelName
from tests.support.echo_load import EchoLoad
from tests.support.front_process import FrontProcess
from tests.support.platform import wait_until
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.tiny_model import make_tiny_model

_MODEL = ModelName("tiny")
_TENANTS = [make_key() for _ in range(4)]
_N_STREAMS = 2
"""Of each tenant."""
_LENGTHS = (20, 200)
_WHOLE_S = 180.0


class CellStorm:
    """A cell of gateways, and two cells with an engine each that may die.

    Args:
        model: Of the engines.
        folder: For the front's files; short.
        bank_port: Of the front's bank.
        stack: Ends all of it.
    """

    def __init__(self, model: Path, folder: Path, bank_port: int, stack: ExitStack) -> None:
        self._model = model
        self._bank = f"http://127.0.0.1:{bank_port}"
        self._gate = stack.enter_context(RayPlatform())
        self._cells = {name: RayPlatform() for name in ("east", "west")}
        stack.callback(self._close_cells)
        for name, cell in self._cells.items():
            cell.__enter__()
            cell.deploy_and_wait(self._settings(name))
        urls = [platform.url for platform in (self._gate, *self._cells.values())]
        self.front = FrontProcess(urls, folder, bank_port)
        stack.callback(self.front.close)
        self._gate.deploy(self._settings("gate", only_gateways=True))
        self.wait_until_whole()
        self.front.wait_until_up(len(urls))

    def _settings(self, name: str, **cell: Any) -> dict[str, Any]:
        entry = {
            "name": _MODEL,
            "source": {"kind": "local", "path": str(self._model)},
            "engine": {"kind": "echo", "max_model_len": 512, "tokens_per_s": 20.0},
            "accelerator": {"kind": "cpu", "cpus": 0.5},
            "drain_timeout_s": 2.5,
        }
        cell |= {"name": name, "bank": self._bank, "period_s": 0.5, "reaches_others": True}
        tenants = [{"id": f"t{i}", "keys": [{"hash": k.hash}]} for i, k in enumerate(_TENANTS)]
        keys: dict[str, Any] = {"auth": {"kind": "keys"}, "tenants": tenants}
        state = {"store": {"state_dir": str(self._model.parent / name)}}
        return {"models": [entry], "cell": cell, **keys, **state, **SMALL}

    def _close_cells(self) -> None:
        for cell in self._cells.values():
            cell.__exit__()

    def kill(self, name: str) -> None:
        """Have a cell die whole."""
        self._cells[name].kill()

    def restore(self, name: str) -> float:
        """Start a cell again; return the seconds until the gateways know it."""
        started_s = time.monotonic()
        dead = self._cells[name]
        dead.__exit__()
        cell = self._cells[name] = RayPlatform(port=int(dead.url.rpartition(":")[2]))
        cell.__enter__()
        cell.deploy_and_wait(self._settings(name))
        self.wait_until_whole()
        return time.monotonic() - started_s

    def wait_until_whole(self) -> None:
        """Wait until the gateways have an engine of each cell."""
        wait_until(lambda: self._count_engines() == len(self._cells), _WHOLE_S, "whole")

    def _count_engines(self) -> int:
        time.sleep(0.5)
        ready = self._gate.ready()
        engines = ready.get("models", {}).get(_MODEL, {}).get("engines", [])
        return sum(engine["state"] == "ready" for engine in engines) if ready.get("ready") else 0

    def names(self) -> list[str]:
        """Return the cells that may die."""
        return sorted(self._cells)


@contextmanager
def cell_storm_over(folder: Path) -> Iterator[CellStorm]:
    """Start all, and wait until it is whole."""
    port = choose_free_port("127.0.0.1", 26_500, 26_599)
    assert port is not None
    with ExitStack() as stack:
        yield CellStorm(make_tiny_model(folder / "tiny", seed=1), folder, port, stack)


def ride_out(storm: CellStorm, n_deaths: int, rng: random.Random) -> list[EchoLoad]:
    """Let cells die one after the other under load; return the load."""
    loads = [
        EchoLoad(
            storm.front.url,
            _MODEL,
            _N_STREAMS,
            rng,
            _LENGTHS,
            {"authorization": f"Bearer {key.text}"},
        )
        for key in _TENANTS
    ]
    for load in loads:
        load.start()
    for i in range(n_deaths):
        time.sleep(rng.uniform(2.0, 6.0))
        name = rng.choice(storm.names())
        storm.kill(name)
        controller = ""
        if rng.random() < 0.3:
            storm.front.replace_controller()
            controller = ", and the front's controller,"
        time.sleep(rng.uniform(5.0, 12.0))
        took_s = storm.restore(name)
        errors = [error for load in loads for error in load.errors]
        assert not errors, "; ".join(errors[:3])
        print(f"{i + 1}: {name}{controller} died; back {took_s:.1f} s after its start", flush=True)
    for load in loads:
        load.stop()
        assert not load.errors, "; ".join(load.errors[:3])
    return loads


def main(argv: Sequence[str] | None = None) -> int:
    """Run a storm of any length."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--deaths", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    os.environ.setdefault("ARRIERO_CELLS_KEY", "of a storm, on one machine")
    folder = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))
    with cell_storm_over(folder) as storm:
        print("whole; the storm begins", flush=True)
        loads = ride_out(storm, options.deaths, random.Random(options.seed))
        print(
            f"{sum(load.n_answers for load in loads)} answers, 0 failed, 0 wrong, {options.deaths} "
            f"cells died, longest pause {max(load.longest_pause_s for load in loads):.1f} s"
        )
    shutil.rmtree(folder)  # kept where it failed, for the front's log
    return 0


if __name__ == "__main__":
    sys.exit(main())
