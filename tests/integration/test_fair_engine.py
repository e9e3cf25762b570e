"""The real vLLM with little KV space: who starts and who gives way goes by counters."""

import os
import queue
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest

from deployments.fair_scheduler import FairTurns
from serve_app.messages import Standing
from serve_app.names import TenantId

_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_BLOCK = 32
_BLOCKS = 12
"""Space for 384 tokens."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_engine_starts_and_preempts_by_counters(tiny_model: Path) -> None:
    # In a process of its own: vLLM's core changes the process's state, and may be had once.
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.test_fair_engine", str(tiny_model)],
        cwd=_ROOT,
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-4000:]


class Engine:
    """A core that steps on its thread, and what it said, in order."""

    def __init__(self, model: Path) -> None:
        from deployments.vllm_core import VllmCore

        self.core: VllmCore
        self.counters: defaultdict[str, int] = defaultdict(int)
        self.tokens: defaultdict[str, list[int]] = defaultdict(list)
        self.started: list[str] = []
        self.ended: list[str] = []
        self._outputs: queue.SimpleQueue[EngineCoreOutputs] = queue.SimpleQueue()
        self._is_built = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(model,), daemon=True)
        self._thread.start()
        assert self._is_built.wait(120.0)

    def _run(self, model: Path) -> None:
        from deployments.vllm_core import VllmCore, vllm_config_of

        args = {
            "max_model_len": 256,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "enforce_eager": True,
            "dtype": "float32",
            "block_size": _BLOCK,
            "num_gpu_blocks_override": _BLOCKS + 1,  # vLLM keeps one for itself.
            "enable_prefix_caching": False,
        }
        config = vllm_config_of(args, str(model), "tiny", on_cpu=True)
        self.core = VllmCore(config, lambda client, outputs: self._outputs.put(outputs))
        self._is_built.set()
        self.core.run()

    def send(
        self,
        name: str,
        tenant: str,
        prompt_tokens: int,
        output_tokens: int,
        charged: int = 10,
        *,
        is_express: bool = False,
    ) -> None:
        """Grants a request as the router does: charged before it comes here."""
        self.counters[tenant] += charged
        seed = sum(name.encode())
        self.core.accept(
            EngineCoreRequest(
                request_id=name,
                prompt_token_ids=[(seed * 31 + i * 7) % 40_000 + 3 for i in range(prompt_tokens)],
                mm_features=None,
                sampling_params=SamplingParams(
                    max_tokens=output_tokens, ignore_eos=True, temperature=0.0
                ),
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            ),
            Standing(TenantId(tenant), 0, self.counters[tenant], charged, is_express),
        )

    def read_until(self, n_started: int = 0, n_ended: int = 0) -> None:
        while len(self.started) < n_started or len(self.ended) < n_ended:
            for output in self._outputs.get(timeout=60.0).outputs:
                if output.request_id not in self.tokens:
                    self.started.append(output.request_id)
                self.tokens[output.request_id] += output.new_token_ids
                if output.finished:
                    self.ended.append(output.request_id)

    def forget(self) -> None:
        self.tokens.clear()
        self.started.clear()
        self.ended.clear()

    def stop(self) -> None:
        self.core.stop()
        self._thread.join(20.0)


def check_start(engine: Engine) -> None:
    """What waits for space starts by counters, though it came the other way round."""
    engine.counters |= {"hog": 0, "heavy": 1000, "light": 100}
    for i in range(3):
        engine.send(f"hog{i}", "hog", 96, 30)
    engine.read_until(n_started=3)
    for name in ("heavy0", "heavy1", "heavy2", "light0", "light1"):
        engine.send(name, name[:-1], 96, 8)
    assert engine.core.counts()[0] == 3, "there is space for three only"
    engine.read_until(n_ended=8)
    assert engine.started[3:] == ["light0", "light1", "heavy0", "heavy1", "heavy2"]


def check_counters_from_the_router(engine: Engine) -> None:
    """What the router says while requests wait changes their order."""
    engine.forget()
    engine.counters |= {"hog": 0, "x": 100, "y": 500}
    for i in range(3):
        engine.send(f"hog{i}", "hog", 96, 30)
    engine.read_until(n_started=3)
    for name in ("x0", "x1", "y0", "y1"):
        engine.send(name, name[:-1], 96, 8)
    engine.core.synchronise({TenantId("x"): 9000, TenantId("y"): 520, TenantId("hog"): 30})
    engine.read_until(n_ended=7)
    assert engine.started[3:] == ["y0", "y1", "x0", "x1"]


def check_preemption(engine: Engine) -> None:
    """Space runs out while four run: the tenant that has got the most gives way, not the last."""
    engine.forget()
    engine.counters |= {"rich": 5000, "poor": 50}
    names = ["rich0", "rich1", "poor0", "poor1"]
    for name in names:
        engine.send(name, name[:-1], 64, 96)
    engine.read_until(n_ended=4)
    assert set(engine.ended[:2]) == {"poor0", "poor1"}, engine.ended
    together = dict(engine.tokens)
    assert {len(tokens) for tokens in together.values()} == {96}
    for name in names:
        engine.forget()
        engine.send(name, name[:-1], 64, 96)
        engine.read_until(n_ended=1)
        assert engine.tokens[name] == together[name], "preemption changes no greedy answer"


def check_express(engine: Engine) -> None:
    """A full batch makes room for an express request; who yields goes on, with the same answer."""
    engine.forget()
    engine.counters |= {"hog": 5000, "busy": 2000, "light": 10}
    names = [*(f"hog{i}" for i in range(6)), "busy0", "busy1"]
    for name in names:
        engine.send(name, name[:-1], 8, 24)
    engine.read_until(n_started=8)
    for name in ("light0", "light1"):
        engine.send(name, "light", 8, 8, is_express=True)
    engine.read_until(n_ended=2)
    assert engine.ended == ["light0", "light1"], "they neither waited nor were they preempted"
    engine.read_until(n_ended=10)
    assert set(engine.ended[-2:]) == {"hog4", "hog5"}, "the youngest of who has got most yielded"
    together = dict(engine.tokens)
    for name in (*names, "light0", "light1"):
        engine.forget()
        engine.send(name, name[:-1], 8, 8 if name.startswith("light") else 24)
        engine.read_until(n_ended=1)
        assert engine.tokens[name] == together[name]


def check_express_beside_long_prompts(engine: Engine) -> None:
    """Long prompts that are being computed leave a part of each step to an express request."""
    engine.forget()
    engine.counters |= {"hog": 5000, "light": 10}
    for name in ("hog0", "hog1"):
        engine.send(name, "hog", 180, 4)
    engine.send("light0", "light", 8, 1, is_express=True)
    engine.read_until(n_ended=3)
    assert engine.started[0] == "light0"


@contextmanager
def watching(scheduler: FairTurns) -> Iterator[list[SchedulerOutput]]:
    """Keeps what each step was planned to compute."""
    schedule, steps = scheduler.schedule, list[SchedulerOutput]()

    def watch(*args: Any, **kwargs: Any) -> SchedulerOutput:
        steps.append(schedule(*args, **kwargs))
        return steps[-1]

    scheduler.schedule = watch  # type: ignore[method-assign]
    yield steps
    scheduler.schedule = schedule  # type: ignore[method-assign]


def check_prompt_chunk(engine: Engine) -> None:
    """Beside another tenant a long prompt is computed in parts; alone, as it comes."""
    scheduler = engine.core.scheduler
    assert isinstance(scheduler, FairTurns)
    scheduler.shape.prompt_chunk = 16
    answers = []
    for neighbour in ("b", "a"):
        engine.forget()
        with watching(scheduler) as steps:
            engine.send("a0", "a", 8, 100)
            engine.read_until(n_started=1)
            engine.send("long0", neighbour, 120, 4)
            engine.read_until(n_ended=1)
            answers.append(engine.tokens["long0"])
            totals = [step.total_num_scheduled_tokens for step in steps]
            assert (max(totals) <= 1 + 16) == (neighbour == "b"), totals
            engine.read_until(n_ended=2)
    assert answers[0] == answers[1]
    scheduler.shape.prompt_chunk = None


def check_own_step(engine: Engine) -> None:
    """Beside a chunk, an express prompt has a step in which the others wait; answers stay."""
    scheduler = engine.core.scheduler
    assert isinstance(scheduler, FairTurns)
    scheduler.shape.prompt_chunk = 16
    engine.forget()
    engine.counters |= {"hog": 5000, "light": 10}
    names = [*(f"hog{i}" for i in range(8)), "light0"]
    with watching(scheduler) as steps:
        for name in names[:-1]:
            engine.send(name, name[:-1], 8, 24)
        engine.read_until(n_started=8)
        engine.send("light0", "light", 64, 4, is_express=True)
        engine.read_until(n_ended=9)
    sizes = [list(step.num_scheduled_tokens.values()) for step in steps]
    own = sizes.index([64])
    assert (len(sizes[own - 1]), len(sizes[own + 1])) == (8, 8), "the others wait once"
    together = dict(engine.tokens)
    for name in names:
        engine.forget()
        engine.send(name, name[:-1], *((64, 4) if name == "light0" else (8, 24)))
        engine.read_until(n_ended=1)
        assert engine.tokens[name] == together[name]
    scheduler.shape.prompt_chunk = None


if __name__ == "__main__":
    engine = Engine(Path(sys.argv[1]))
    check_start(engine)
    check_counters_from_the_router(engine)
    check_preemption(engine)
    check_express(engine)
    check_express_beside_long_prompts(engine)
    check_prompt_chunk(engine)
    check_own_step(engine)
    engine.stop()
