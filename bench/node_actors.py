"""Actors that want a processor each, for `bench.node_loop`: their driver, and who talks to it.

    python -m bench.node_actors ADDRESS FOLDER    `more N` and `end` on its input

Each actor leaves a file in the folder with the time at which it runs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.bootstrap import ROOT


class Actors:
    """A driver that is connected, and its actors. Times are seconds since 1970.

    Args:
        address: HOST:PORT of Ray's head.
        folder: For what actors leave.
        environ: Of the driver.
    """

    def __init__(self, address: str, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        folder.mkdir()
        with folder.with_suffix(".log").open("w") as log:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "bench.node_actors", address, str(folder)],
                cwd=ROOT,
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._read()

    def add(self, count: int) -> float:
        """Creates actors; returns when."""
        return self._ask(f"more {count}")

    def end(self) -> float:
        """Ends all of them, waiting ones too; returns when."""
        return self._ask("end")

    def ran(self) -> list[float]:
        """When each actor began to run, those that have ended since too."""
        return sorted(float(file.read_text()) for file in self._folder.glob("*.ran"))

    def close(self) -> None:
        """Ends the driver."""
        self._driver.kill()
        self._driver.communicate()

    def _ask(self, text: str) -> float:
        assert self._driver.stdin is not None
        self._driver.stdin.write(f"{text}\n")
        self._driver.stdin.flush()
        return self._read()

    def _read(self) -> float:
        assert self._driver.stdout is not None
        line = self._driver.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver has ended; {self._folder}.log says why")
        at_s: float = json.loads(line)
        return at_s


class Worker:
    """Runs, and does nothing.

    Args:
        file: Gets the time.
    """

    def __init__(self, file: str) -> None:
        partial = Path(f"{file}.partial")
        partial.write_text(str(time.time()))
        partial.replace(file)


def main(address: str, folder: str) -> None:
    import ray as untyped_ray

    # Ray prints what its autoscaler does; that is no answer, and goes to the log.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    ray: Any = untyped_ray
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    worker = ray.remote(num_cpus=1)(Worker)
    actors: list[Any] = []
    n_made = 0
    print(json.dumps(time.time()), file=answers, flush=True)
    for line in sys.stdin:
        at_s = time.time()
        if line.startswith("more"):
            for _ in range(int(line.split()[1])):
                n_made += 1
                actors.append(worker.remote(f"{folder}/{n_made}.ran"))
        else:
            for actor in actors:
                ray.kill(actor)
            actors.clear()
        print(json.dumps(at_s), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
