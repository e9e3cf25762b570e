"""One engine replica in a process of its own, without Ray: to be killed, and for real vLLM.

The process reads where its router is from a file, again after each loss, as a replica would ask
Ray; so a test can put another router there.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from serve_app.config_adapters import AdapterCacheSettings
from serve_app.config_model import ModelSettings
from serve_app.messages import Endpoint, EngineId
from serve_app.policy.placement import plan_placement

if TYPE_CHECKING:
    from deployments.engine import Engine

_HOST = "127.0.0.1"
_ROOT = Path(__file__).parents[2]


class EngineProcess:
    """Starts an engine process; it reports to the router as soon as it runs."""

    def __init__(
        self,
        model: ModelSettings,
        engine_id: EngineId,
        endpoint_file: Path,
        adapters: AdapterCacheSettings = AdapterCacheSettings(),  # noqa: B008 - frozen
    ) -> None:
        log = endpoint_file.with_name(f"{engine_id}.log")
        # The computing threads of several test processes would only stand in each other's way.
        environment = {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        command = [sys.executable, "-m", "tests.support.engine_process", engine_id]
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(*command, str(endpoint_file)),
                    *(model.model_dump_json(), adapters.model_dump_json()),
                ],
                cwd=_ROOT,
                env=os.environ | dict(plan_placement(model).env) | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal: SIGSTOP, SIGCONT, SIGTERM to leave, SIGUSR1 for its core to hang."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the process as the kernel would: it has no chance to say goodbye."""
        self._process.kill()
        self._process.wait()


def write_endpoint(file: Path, endpoint: Endpoint) -> None:
    """Says where the router is, from now on."""
    draft = file.with_suffix(".draft")
    draft.write_bytes(msgspec.msgpack.encode(endpoint))
    draft.rename(file)


def read_endpoint(file: Path) -> Endpoint:
    """Where the router is now."""
    return msgspec.msgpack.decode(file.read_bytes(), type=Endpoint)


def hang(engine: "Engine") -> None:
    """Has the next step of an engine's core never end, as a device or a collective does."""
    step = "_end_step" if hasattr(engine._core, "_end_step") else "_process_engine_step"
    setattr(engine._core, step, threading.Event().wait)


async def run_engine(
    engine_id: EngineId, endpoint_file: Path, model: ModelSettings, adapters: AdapterCacheSettings
) -> None:
    """Runs an engine until it dies, or whoever started it does."""
    from deployments.engine import Engine

    async def find_router() -> Endpoint:
        return read_endpoint(endpoint_file)

    engine = Engine(model, engine_id, find_router, _HOST, adapters)
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, leaving.set)
    loop.add_signal_handler(signal.SIGUSR1, hang, engine)
    await engine.start()
    parent = os.getppid()
    while os.getppid() == parent:  # A test run that was killed leaves nobody behind.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(leaving.wait(), 1.0)
        if leaving.is_set():
            await engine.stop()
            return
        engine.check_health()


def main(argv: list[str]) -> None:
    engine_id, endpoint_file, model, adapters = argv
    settings = ModelSettings.model_validate_json(model)
    cache = AdapterCacheSettings.model_validate_json(adapters)
    asyncio.run(run_engine(EngineId(engine_id), Path(endpoint_file), settings, cache))


if __name__ == "__main__":
    main(sys.argv[1:])
