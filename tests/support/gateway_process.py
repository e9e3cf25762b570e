"""Gateways in processes of their own, without Ray, on loopback ports."""

import asyncio
import faulthandler
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from serve_app.config import Settings
from serve_app.messages import Endpoint
from serve_app.names import ModelName
from serve_app.standing_link import FindEndpoint

_HOST = "127.0.0.1"
_ROOT = Path(__file__).parents[2]


class GatewayProcesses:
    """Starts processes of one gateway each, over the endpoint files of a folder.

    They are forks of one process that has imported everything, which takes most of the time.
    """

    def __init__(self, settings: Settings, n_gateways: int, folder: Path) -> None:
        sockets = [socket.create_server((_HOST, 0), backlog=1024) for _ in range(n_gateways)]
        self.urls = [f"http://{_HOST}:{listening.getsockname()[1]}" for listening in sockets]
        self.log = folder / "gateways.log"
        descriptors = [listening.fileno() for listening in sockets]
        command = [sys.executable, "-m", "tests.support.gateway_process", str(folder)]
        environment = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, settings.model_dump_json(), *map(str, descriptors)],
                cwd=_ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                start_new_session=True,
            )
        for listening in sockets:
            listening.close()

    def check(self) -> None:
        """Raises when one has ended by itself, with what it last said."""
        log = self.log.read_text()
        if self._process.poll() is not None or "ended with status" in log:
            raise AssertionError(f"A gateway process has ended: {log[-2000:]}")

    def kill(self) -> None:
        """Ends them all as the kernel would."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _find_in(file: Path) -> FindEndpoint:
    async def find() -> Endpoint:
        return msgspec.msgpack.decode(file.read_bytes(), type=Endpoint)  # noqa: ASYNC240 - short

    return find


async def _run(name: str, folder: Path, listening: int, settings: Settings) -> None:
    import uvicorn

    from serve_app.gateway.app import build_gateway_app
    from serve_app.gateway.gateway import Gateway

    def find_router_of(model: ModelName) -> FindEndpoint:
        return _find_in(folder / f"{model}.endpoint")

    gateway = Gateway(name, find_router_of, _find_in(folder / "ledger.endpoint"))
    gateway.configure(settings)
    config = uvicorn.Config(build_gateway_app(gateway), log_level="warning", timeout_keep_alive=120)
    await uvicorn.Server(config).serve(sockets=[socket.socket(fileno=listening)])


def main(argv: list[str]) -> None:
    import serve_app.gateway.app  # noqa: F401 - before the forks, so that it is done once

    faulthandler.enable()
    folder, settings, *descriptors = argv
    parsed = Settings.model_validate_json(settings)
    for i, listening in enumerate(descriptors):
        if os.fork() == 0:
            asyncio.run(_run(f"process-{i}", Path(folder), int(listening), parsed))
            return
    for _ in descriptors:
        pid, status = os.wait()
        print(f"Gateway process {pid} ended with status {status}.", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
