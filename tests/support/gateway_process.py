"""Gateways in processes of their own, without Ray, on loopback ports."""

import asyncio
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from serve_app.config import Settings
from serve_app.messages import Endpoint
from serve_app.metrics import Metrics
from serve_app.metrics_server import MetricsServer
from serve_app.names import ModelName
from serve_app.standing_link import FindEndpoint
from serve_app.telemetry import set_up_logging

_HOST = "127.0.0.1"
_MARK = "Gateway process "
_ROOT = Path(__file__).parents[2]


class GatewayProcesses:
    """Starts processes of one gateway each, over the endpoint files of a folder.

    They are forks of one process that has imported everything, which takes most of the time.

    Args:
        settings: Of each gateway.
        folder: For endpoint files, and what the gateways write.
    """

    def __init__(self, settings: Sequence[Settings], folder: Path) -> None:
        sockets = [socket.create_server((_HOST, 0), backlog=1024) for _ in settings]
        self.urls = [f"http://{_HOST}:{listening.getsockname()[1]}" for listening in sockets]
        self.log = folder / "gateways.log"
        descriptors = [listening.fileno() for listening in sockets]
        command = [sys.executable, "-m", "tests.support.gateway_process", str(folder)]
        environment = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, *map(str, descriptors)],
                cwd=_ROOT,
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                start_new_session=True,
                text=True,
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            json.dump([each.model_dump(mode="json") for each in settings], pipe)
        for listening in sockets:
            listening.close()

    def check(self) -> None:
        """Raises when one has ended by itself, with what it last said."""
        log = self.log.read_text()
        if self._process.poll() is not None or "A gateway ended with status" in log:
            raise AssertionError(f"A gateway process has ended: {log[-2000:]}")

    def processes(self) -> list[tuple[int, str]]:
        """Their ids, and where they show metrics, in the order of their settings.

        To be asked once they answer. Who has metrics off shows them nowhere.
        """
        lines = self.log.read_text().splitlines()
        found = [line.removeprefix(_MARK).split(" ") for line in lines if line.startswith(_MARK)]
        return [(int(pid), at) for _, pid, at in sorted(found, key=lambda words: int(words[0]))]

    def kill(self) -> None:
        """Ends them all as the kernel would."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _find_in(file: Path) -> FindEndpoint:
    async def find() -> Endpoint:
        return msgspec.msgpack.decode(file.read_bytes(), type=Endpoint)  # noqa: ASYNC240 - short

    return find


async def _run(number: int, folder: Path, listening: int, settings: Settings) -> None:
    import uvicorn

    from serve_app.gateway.app import build_gateway_app
    from serve_app.gateway.gateway import Gateway
    from serve_app.gateway.gateway_metrics import GatewayMetrics

    def find_router_of(model: ModelName) -> FindEndpoint:
        return _find_in(folder / f"{model}.endpoint")

    set_up_logging(settings.logging)
    metrics, name = Metrics(settings.metrics), f"process-{number}"
    shown = MetricsServer(metrics, _HOST, "gateway", name, None) if metrics.is_on else None
    if shown is not None:
        shown.start()
    print(f"{_MARK}{number} {os.getpid()} {shown.target.address if shown else ''}", flush=True)
    find_ledger = _find_in(folder / "ledger.endpoint")
    gateway = Gateway(name, find_router_of, find_ledger, GatewayMetrics(metrics))
    gateway.configure(settings)
    config = uvicorn.Config(build_gateway_app(gateway), log_level="warning", timeout_keep_alive=120)
    await uvicorn.Server(config).serve(sockets=[socket.socket(fileno=listening)])


def main(argv: list[str]) -> None:
    import serve_app.gateway.app  # noqa: F401 - before the forks, so that it is done once

    faulthandler.enable()
    folder, *descriptors = argv
    settings = [Settings.model_validate(each) for each in json.load(sys.stdin)]
    for i, listening in enumerate(descriptors):
        if os.fork() == 0:
            asyncio.run(_run(i, Path(folder), int(listening), settings[i]))
            return
    for _ in descriptors:
        pid, status = os.wait()
        print(f"A gateway ended with status {status}: {pid}.", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
