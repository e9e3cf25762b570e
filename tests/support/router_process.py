"""One router in a process of its own, without Ray: to be killed.

It writes where it listens to a file, which stands for what Ray would say.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from serve_app.config import Settings
from serve_app.names import ModelName
from tests.support.engine_process import write_endpoint

_HOST = "127.0.0.1"
_ROOT = Path(__file__).parents[2]


class RouterProcess:
    """Starts a router process; `endpoint_file` is written once it listens."""

    def __init__(self, model_name: ModelName, settings: Settings, endpoint_file: Path) -> None:
        command = [sys.executable, "-m", "tests.support.router_process", model_name]
        log = endpoint_file.with_suffix(".router.log")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, str(endpoint_file), settings.model_dump_json()],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """Ends the process as the kernel would: it has no chance to say goodbye."""
        self._process.kill()
        self._process.wait()


async def _run(model_name: ModelName, endpoint_file: Path, settings: Settings) -> None:
    from deployments.router import Router
    from deployments.router_state import StateFile
    from serve_app.telemetry import set_up_logging
    from serve_app.wire import Listener

    set_up_logging(settings.logging)
    keeper = StateFile(endpoint_file.parent / "router", model_name)
    router = Router(model_name, settings, Listener(_HOST), keeper=keeper)
    write_endpoint(endpoint_file, router.endpoint)
    running = asyncio.create_task(router.run())
    parent = os.getppid()
    while os.getppid() == parent:  # A test run that was killed leaves nobody behind.
        await asyncio.wait([running], timeout=1.0)
        if running.done():
            running.result()


def main(argv: list[str]) -> None:
    model_name, endpoint_file, settings = argv
    parsed = Settings.model_validate_json(settings)
    asyncio.run(_run(ModelName(model_name), Path(endpoint_file), parsed))


if __name__ == "__main__":
    main(sys.argv[1:])
