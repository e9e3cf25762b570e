"""One gateway in a process of its own, without Ray, on a loopback port that it is given."""

import asyncio
import os
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


class GatewayProcess:
    """Starts a gateway process over the endpoint files of a folder."""

    def __init__(self, settings: Settings, name: str, folder: Path) -> None:
        listening = socket.create_server((_HOST, 0), backlog=1024)
        self.url = f"http://{_HOST}:{listening.getsockname()[1]}"
        command = [sys.executable, "-m", "tests.support.gateway_process", name, str(folder)]
        environment = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        with (folder / f"{name}.log").open("wb") as output, listening:
            self._process = subprocess.Popen(
                [*command, str(listening.fileno()), settings.model_dump_json()],
                cwd=_ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[listening.fileno()],
            )

    def kill(self) -> None:
        """Ends the process as the kernel would."""
        self._process.kill()
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
    config = uvicorn.Config(build_gateway_app(gateway), log_level="warning")
    await uvicorn.Server(config).serve(sockets=[socket.socket(fileno=listening)])


def main(argv: list[str]) -> None:
    name, folder, listening, settings = argv
    parsed = Settings.model_validate_json(settings)
    asyncio.run(_run(name, Path(folder), int(listening), parsed))


if __name__ == "__main__":
    main(sys.argv[1:])
