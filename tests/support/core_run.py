"""The real core on its thread, without a gateway: requests in, tokens out, in order."""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest

from deployments.adapter_reading import read_ahead
from serve_app.messages import Standing
from serve_app.names import TenantId


def make_request(
    name: str, prompt: list[int], max_tokens: int, lora: LoRARequest | None
) -> EngineCoreRequest:
    """A request that decodes greedily to its limit."""
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=lora,
        cache_salt=None,
        data_parallel_rank=None,
    )


class CoreRun:
    """A VllmCore that steps on a thread of its own. One a process, as vLLM changes its state."""

    def __init__(self, model: Path, **engine_args: Any) -> None:
        from deployments.vllm_core import VllmCore

        self.core: VllmCore
        self.tokens: defaultdict[str, list[int]] = defaultdict(list)
        self.times_s: defaultdict[str, list[float]] = defaultdict(list)
        """When each token was said."""
        self.worked_s: defaultdict[str, list[float]] = defaultdict(list)
        """Time of the processor that the core's thread had taken when each token was said."""
        self.started: list[str] = []
        self.ended: list[str] = []
        self.n_steps = 0
        self.sink: Callable[[int, EngineCoreOutputs], None] = self.note
        """Where the core's outputs go; a gate, when there is one, passes them on to `note`."""
        self._outputs: queue.SimpleQueue[tuple[float, float, EngineCoreOutputs]] = (
            queue.SimpleQueue()
        )
        self._is_built = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(model, engine_args), daemon=True)
        self._thread.start()
        assert self._is_built.wait(300.0)

    def _run(self, model: Path, engine_args: dict[str, Any]) -> None:
        from deployments.vllm_core import VllmCore, vllm_config_of

        config = vllm_config_of(engine_args, str(model), "model", on_cpu=True)
        self.core = VllmCore(config, self._emit)
        self._is_built.set()
        self.core.run()

    def _emit(self, client: int, outputs: EngineCoreOutputs) -> None:
        self.sink(client, outputs)

    def note(self, client: int, outputs: EngineCoreOutputs) -> None:
        """Takes one step's outputs, on the core's thread."""
        self._outputs.put((time.perf_counter(), time.thread_time(), outputs))

    def hold(self, adapter_id: int, folder: Path, *, is_read_ahead: bool = True) -> None:
        """Brings an adapter into memory, as engines do, or has vLLM read it."""
        if is_read_ahead:
            read_ahead(adapter_id, folder)
        self.core.hold_adapter(adapter_id, str(folder)).result(60.0)

    def send(
        self,
        name: str,
        prompt: list[int],
        max_tokens: int,
        adapter: int = 0,
        standing: Standing | None = None,
    ) -> None:
        """Hands over a request that decodes greedily, with an adapter that is held, or none."""
        lora = LoRARequest(str(adapter), adapter, "/held") if adapter else None
        self.core.accept(
            make_request(name, prompt, max_tokens, lora),
            standing or Standing(TenantId("a"), 0, 0, 0),
        )

    def read(self, timeout_s: float = 60.0) -> list[str]:
        """Reads one step's outputs; returns who has ended in it."""
        at_s, worked_s, outputs = self._outputs.get(timeout=timeout_s)
        self.n_steps += 1
        ended = []
        for output in outputs.outputs:
            name = output.request_id
            if output.new_token_ids and name not in self.tokens:
                self.started.append(name)
            self.tokens[name] += output.new_token_ids
            self.times_s[name] += [at_s] * len(output.new_token_ids)
            self.worked_s[name] += [worked_s] * len(output.new_token_ids)
            if output.finished:
                ended.append(name)
        self.ended += ended
        return ended

    def read_until(self, *names: str) -> None:
        """Reads until all of these have ended."""
        while not set(names) <= set(self.ended):
            self.read()

    def stop(self) -> None:
        """Ends the core."""
        self.core.stop()
        self._thread.join(20.0)
        assert not self._thread.is_alive()
