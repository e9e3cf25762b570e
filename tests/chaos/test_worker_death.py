"""A worker of the real core dies, in a process of its own as where a model has several GPUs.

The core has to end then, whether it was in a step or idle: its engine's process ends with it, and
what ran there goes on elsewhere (tests/integration/test_migration.py). With `make chaos-deaths`.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.support.core_run import make_request
from tests.support.tiny_model import make_tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not os.environ.get("ARRIERO_DEATHS"), reason="make chaos-deaths"),
]

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
_ENDS_S = 30.0


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_core_ends_when_its_worker_is_killed(when: str, tmp_path: Path) -> None:
    # In a process of its own: vLLM's core changes the process's state, and may be had once.
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.chaos.test_worker_death",
            when,
            str(make_tiny_model(tmp_path / "model")),
        ],
        cwd=_ROOT,
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def kill_worker(when: str, model: str) -> None:
    from vllm.v1.engine import EngineCoreOutputs

    from deployments.vllm_core import VllmCore, vllm_config_of
    from serve_app.messages import Standing
    from serve_app.names import TenantId

    args = {"max_model_len": 256, "enforce_eager": True, "dtype": "float32"}
    config = vllm_config_of(args, model, "tiny", on_cpu=True)
    config.parallel_config.distributed_executor_backend = "mp"
    cores: list[VllmCore] = []
    faults: list[BaseException] = []
    is_built, has_token = threading.Event(), threading.Event()

    def emit(client: int, outputs: EngineCoreOutputs) -> None:
        has_token.set()

    def run() -> None:
        cores.append(VllmCore(config, emit))
        is_built.set()
        try:
            cores[0].run()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_built.wait(120.0)
    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.pid in {each.proc.pid for each in cores[0].model_executor.workers}
    ]
    assert len(workers) == 1
    if when == "busy":
        cores[0].accept(make_request("r", [5, 6, 7], 240, None), Standing(TenantId("a"), 0, 0, 0))
        assert has_token.wait(30.0)
    workers[0].kill()
    thread.join(_ENDS_S)
    assert not thread.is_alive(), "the core has not noticed"
    assert faults, "the core ended as if it was told to"
    print(repr(faults[0]))


if __name__ == "__main__":
    kill_worker(*sys.argv[1:])
    os._exit(0)  # What vLLM left running is not waited for.
