"""`arriero front` over cells of this machine, whose controller may be killed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from cluster.machine import choose_free_port
from tests.support.platform import wait_until


class FrontProcess:
    """One address over cells: `arriero front` in a process of its own.

    Args:
        urls: Of the cells.
        folder: For its files; short, as sockets are in it.
        bank_port: Of its bank; None has none. The cells' key has to be in the environment.
    """

    def __init__(self, urls: Sequence[str], folder: Path, bank_port: int | None = None) -> None:
        port = choose_free_port("127.0.0.1", 26_000, 26_499)
        cells = [{"name": f"cell-{i}", "url": url} for i, url in enumerate(urls)]
        bank = None if bank_port is None else {"port": bank_port}
        front = {"port": port, "period_s": 0.5, "stop_s": 2.0, "cells": cells, "bank": bank}
        args = {"front": front}
        app = {"name": "arriero", "import_path": "serve_app.main:build", "args": args}
        self.url = f"http://127.0.0.1:{port}"
        self._file = folder / "front.yaml"
        self._file.write_text(yaml.safe_dump({"applications": [app]}))
        self._environ = os.environ | {"ARRIERO_STATE_DIR": str(folder)}
        self._log = folder / "front.log"
        self._controller = self._start()

    def replace_controller(self) -> None:
        """SIGKILL to the controller; HAProxy goes on, and another controller takes it over."""
        self._controller.kill()
        self._controller.wait()
        self._controller = self._start()

    def wait_until_up(self, n_cells: int) -> None:
        """Wait until all cells get requests."""
        wait_until(lambda: self._log.read_text().count(": serves") >= n_cells, 60.0, "a front")

    def close(self) -> None:
        """End both."""
        self._controller.terminate()
        self._controller.wait(30.0)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "serve_app.cli", "front", str(self._file)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, env=self._environ, stdout=log, stderr=subprocess.STDOUT
            )
