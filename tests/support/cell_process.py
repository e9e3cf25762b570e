"""Cells in processes of their own, without Ray: whole platforms on loopback ports, to be killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from serve_app.config import Settings
from tests.support.platform import LocalPlatform, wait_until

_ROOT = Path(__file__).parents[2]


class CellProcesses:
    """Starts one process a cell. They are forks of one that has imported everything.

    Args:
        cells: The settings of each; echo engines only, for what computes must not be forked.
        folder: For their files.
    """

    def __init__(self, cells: Sequence[Settings], folder: Path) -> None:
        self._folder = folder
        self.log = folder / "cells.log"
        environment = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        texts = [cell.model_dump_json() for cell in cells]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.cell_process", str(folder), *texts],
                cwd=_ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.urls = [self._wait_for(i) for i in range(len(cells))]

    def _wait_for(self, i: int) -> str:
        file = self._folder / f"cell-{i}.url"

        def is_there() -> bool:
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            return file.exists()

        wait_until(is_there, 100.0, f"cell {i} ready")
        return file.read_text()

    def pid(self, i: int) -> int:
        """Return the process of a cell."""
        return int((self._folder / f"cell-{i}.pid").read_text())

    def kill(self, i: int, signal_: signal.Signals = signal.SIGKILL) -> None:
        """Ends a cell as the kernel would, or stops it, as a machine that is gone."""
        os.kill(self.pid(i), signal_)

    def close(self) -> None:
        """Ends them all as the kernel would."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _run(i: int, folder: Path, settings: Settings) -> None:
    own = folder / f"cell-{i}"
    own.mkdir()
    (folder / f"cell-{i}.pid").write_text(str(os.getpid()))
    with LocalPlatform(settings, own) as platform:
        partial = folder / f"cell-{i}.partial"
        partial.write_text(platform.url)
        partial.rename(folder / f"cell-{i}.url")
        threading.Event().wait()


def main(argv: list[str]) -> None:
    folder, *texts = argv
    for i, text in enumerate(texts):
        if os.fork() == 0:
            _run(i, Path(folder), Settings.model_validate_json(text))
            return
    for _ in texts:
        pid, status = os.wait()
        print(f"Cell process {pid} ended with status {status}.", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1:])
