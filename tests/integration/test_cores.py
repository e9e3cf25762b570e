"""One contract for the echo core and vLLM's: what an engine may rely on, whichever it steps."""

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest

from deployments.engine_server import Core
from serve_app.messages import Standing
from serve_app.names import TenantId
from tests.support.adapters import make_adapter

Kind = Literal["echo", "vllm"]
_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["echo", pytest.param("vllm", marks=pytest.mark.slow)])
def test_core_keeps_the_contract(kind: Kind, tiny_model: Path) -> None:
    # In a process of its own: vLLM's core changes the process's state, and may be had once.
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_cores", kind, str(tiny_model)],
        cwd=_ROOT,
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


class Run:
    """A core that steps on its thread, and what it said."""

    def __init__(self, kind: Kind, model: Path) -> None:
        self._outputs: queue.SimpleQueue[tuple[int, EngineCoreOutput]] = queue.SimpleQueue()
        self._is_built = threading.Event()
        self.core: Core
        self.said: dict[str, list[EngineCoreOutput]] = defaultdict(list)
        self.clients: dict[str, int] = {}
        self.thread = threading.Thread(target=self._run, args=(kind, model), daemon=True)
        self.thread.start()
        assert self._is_built.wait(120.0)

    def _run(self, kind: Kind, model: Path) -> None:
        # Built and run on one thread, as engines do.
        from deployments.echo_adapters import AdapterPace
        from deployments.echo_core import EchoCore
        from deployments.echo_pace import Pace
        from deployments.vllm_core import VllmCore, vllm_config_of

        args = {
            "max_model_len": 256,
            "max_num_seqs": 4,
            "enforce_eager": True,
            "dtype": "float32",
            "enable_lora": True,
            "max_loras": 2,
            "max_cpu_loras": 3,
            "max_lora_rank": 8,
        }
        config = vllm_config_of(args, str(model), "tiny", on_cpu=True)
        if kind == "echo":
            adapters = AdapterPace(slots=2, capacity=3, load_s=0.01, activate_s=0.01)
            self.core = EchoCore(config, self._emit, Pace(1 / 200), adapters)
        else:
            self.core = VllmCore(config, self._emit)
        self._is_built.set()
        self.core.run()

    def _emit(self, client: int, outputs: EngineCoreOutputs) -> None:
        for output in outputs.outputs:
            self._outputs.put((client, output))

    def accept(
        self,
        name: str,
        max_tokens: int,
        client: int = 0,
        adapter: int = 0,
        produced: Sequence[int] = (),
    ) -> None:
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
        self.core.accept(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=[5, 6, 7],
                mm_features=None,
                sampling_params=params,
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=LoRARequest(str(adapter), adapter, "/held") if adapter else None,
                cache_salt=None,
                data_parallel_rank=None,
                client_index=client,
            ),
            Standing(TenantId("a"), tier=0, counter=0, charged=0),
            produced,
        )

    def read_until(self, name: str, *, finished: bool) -> None:
        """Reads what the core says until it said something on this request, or all of it."""
        while True:
            client, output = self._outputs.get(timeout=60.0)
            self.said[output.request_id].append(output)
            self.clients[output.request_id] = client
            if output.request_id == name and (output.finished or not finished):
                return

    def count_tokens(self, name: str) -> int:
        return sum(len(output.new_token_ids) for output in self.said[name])

    def tokens(self, name: str) -> list[int]:
        return [token for output in self.said[name] for token in output.new_token_ids]

    def wait_until_empty(self) -> None:
        deadline_s = time.monotonic() + 10.0
        while self.core.counts() != (0, 0, 0.0):
            assert time.monotonic() < deadline_s, self.core.counts()
            time.sleep(0.01)


def check_contract(run: Run, adapters: list[Path]) -> None:
    # A request gets its tokens, no more, and ends once.
    run.accept("a", max_tokens=5, client=3)
    run.read_until("a", finished=True)
    assert run.count_tokens("a") == 5
    assert sum(output.finished for output in run.said["a"]) == 1
    assert run.clients["a"] == 3

    # More than fit a batch are all served.
    names = [f"b{i}" for i in range(run.core.max_running + 3)]
    for name in names:
        run.accept(name, max_tokens=4)
    for name in names:
        if not any(output.finished for output in run.said[name]):
            run.read_until(name, finished=True)
        assert run.count_tokens(name) == 4

    # An abort ends a request, whether it runs or waits; unknown ones are ignored.
    for i in range(run.core.max_running + 1):
        run.accept(f"c{i}", max_tokens=200)
    run.read_until("c0", finished=False)
    running, waiting, usage = run.core.counts()
    assert running + waiting == run.core.max_running + 1
    assert usage > 0.0
    run.core.abort([f"c{i}" for i in range(run.core.max_running + 1)] + ["unknown"])
    run.wait_until_empty()
    run.accept("d", max_tokens=2)
    run.read_until("d", finished=True)
    assert run.count_tokens("d") == 2
    assert run.count_tokens("c0") < 200

    # Adapters come into memory while others run, and are served from there: here more than slots,
    # as many as memory holds.
    assert (run.core.adapter_slots, run.core.adapter_capacity) == (2, 3)
    run.accept("base", max_tokens=40)
    for adapter_id in (1, 2, 3):
        run.core.hold_adapter(adapter_id, str(adapters[adapter_id - 1])).result(30.0)
        run.core.activate_adapter(adapter_id).result(30.0)
    for name, adapter_id in (("l1", 1), ("l2", 2), ("l3", 3), ("l1b", 1)):
        run.accept(name, max_tokens=5, adapter=adapter_id)
    for name in ("l1", "l2", "l3", "l1b", "base"):
        if not any(output.finished for output in run.said[name]):
            run.read_until(name, finished=True)
    assert run.count_tokens("l3") == 5
    assert run.count_tokens("base") == 40

    # Which run is known. What is dropped makes room, and may come again.
    run.accept("l2c", max_tokens=100, adapter=2)
    run.read_until("l2c", finished=False)
    assert run.core.active_adapters() == {2}
    run.core.drop_adapter(1).result(30.0)
    run.core.hold_adapter(4, str(adapters[0])).result(30.0)
    run.accept("l4", max_tokens=5, adapter=4)
    run.read_until("l4", finished=True)
    run.core.abort(["l2c"])
    run.wait_until_empty()
    assert run.core.active_adapters() == set()

    # What has begun elsewhere goes on after its last token, as if it had been here all the time.
    run.accept("whole", max_tokens=12)
    run.read_until("whole", finished=True)
    whole = run.tokens("whole")
    for n_produced in (1, 5, 11):
        name = f"rest{n_produced}"
        run.accept(name, max_tokens=12, produced=whole[:n_produced])
        run.read_until(name, finished=True)
        assert run.tokens(name) == whole[n_produced:]
        assert run.said[name][-1].finish_reason == run.said["whole"][-1].finish_reason
    assert run.core.last_step_s > time.monotonic() - 10.0

    # It stops, with something running or not.
    run.accept("e", max_tokens=200)
    run.core.stop()
    run.thread.join(20.0)
    assert not run.thread.is_alive()


if __name__ == "__main__":
    kind, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        made = [
            make_adapter(Path(folder) / str(seed), Path(model), seed=seed) for seed in (1, 2, 3)
        ]
        check_contract(Run("echo" if kind == "echo" else "vllm", Path(model)), made)
