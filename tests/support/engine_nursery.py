"""Echo engines in processes of their own that are there at once: forks of one that is prepared.

Importing vLLM takes most of an engine's start. Only for echo engines: what computes must not be
forked from a process that has threads.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from serve_app.config_adapters import AdapterCacheSettings
from serve_app.config_model import ModelSettings
from serve_app.messages import EngineId
from serve_app.policy.placement import plan_placement

_ROOT = Path(__file__).parents[2]


class ForkedEngine:
    """One engine of a nursery; as `EngineProcess`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return Path(f"/proc/{self.pid}").exists()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, as to an `EngineProcess`."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process as the kernel would. One that has ended already is left in peace."""
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)


class EngineNursery:
    """The process whose forks engines are.

    Args:
        model: Of what all of them are engines; an echo model.
        endpoint_file: Says where the router is.
        adapters: Where copies of adapters lie.
    """

    def __init__(
        self, model: ModelSettings, endpoint_file: Path, adapters: AdapterCacheSettings
    ) -> None:
        environment = {
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        self.log = endpoint_file.with_suffix(".engines.log")
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.engine_nursery", str(endpoint_file)],
                cwd=_ROOT,
                env=os.environ | dict(plan_placement(model).env) | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        self._ask([model.model_dump_json(), adapters.model_dump_json()])

    def start(self, engine_id: EngineId) -> ForkedEngine:
        """Starts an engine; it reports to the router as soon as it runs."""
        return ForkedEngine(int(self._ask(engine_id)))

    def close(self) -> None:
        """Ends the process, and with it every engine."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()

    def _ask(self, line: str | list[str]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def main(argv: list[str]) -> None:
    import deployments.echo_core
    import deployments.engine  # noqa: F401 - before the forks, so that it is done once
    from tests.support.engine_process import run_engine

    # What engines print goes to the log: answers have a pipe of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel takes the dead away.
    model_json, adapters_json = json.loads(sys.stdin.readline())
    model = ModelSettings.model_validate_json(model_json)
    adapters = AdapterCacheSettings.model_validate_json(adapters_json)
    print("ready", file=answers)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(run_engine(EngineId(json.loads(line)), Path(argv[0]), model, adapters))
            os._exit(0)
        print(pid, file=answers)


if __name__ == "__main__":
    main(sys.argv[1:])
