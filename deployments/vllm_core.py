"""vLLM's engine core, stepped on a thread of the engine replica's own process.

vLLM's server puts the core in a second process behind ZeroMQ and, on a CPU, its worker in a
third. Here the replica is that process: it has no HTTP edge of its own to protect from the
core's steps, so two hops and, on a CPU, a spinning shared-memory queue fall away. The step loop,
the scheduler, errors and request preprocessing stay vLLM's (vllm.v1.engine.core, 0.32).

Imports vLLM: import it lazily, after the process's environment is set.
"""

import os
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.tasks import SupportedTask
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineCoreRequestType,
)
from vllm.v1.engine.core import EngineCore, EngineCoreProc, EngineShutdownState
from vllm.v1.executor import Executor

from deployments.adapter_extension import AdapterExtension
from deployments.core_chores import Chore, Chores
from deployments.fair_scheduler import FairScheduler, FairSyncScheduler, FairTurns
from deployments.resumed_request import ResumingWorker, announce_produced, restore_output
from serve_app.messages import Standing
from serve_app.names import TenantId

# vLLM's CPU worker puts a function in its place that does nothing.
_set_num_threads = torch.set_num_threads

Emit = Callable[[int, EngineCoreOutputs], None]
"""Takes one step's outputs for one client (its index) on the core's thread."""


def vllm_config_of(
    engine_args: dict[str, Any], model: str, served_name: str, *, on_cpu: bool
) -> VllmConfig:
    """Resolves engine arguments into vLLM's full configuration.

    Raises:
        ValueError: vLLM refuses a value or a combination; its text says which.
    """
    if on_cpu:
        # vLLM forces its multi-process executor on CPUs because it can't set OpenMP's variables
        # in a process that already runs. Ours are set before the replica starts (main.py).
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    args = AsyncEngineArgs(model=model, served_model_name=[served_name], **engine_args)
    config = args.create_engine_config(UsageContext.OPENAI_API_SERVER)
    if on_cpu:
        config.parallel_config.distributed_executor_backend = "uni"
    return config


def _take_fair_turns(config: VllmConfig) -> None:
    """Puts our scheduler in the place of vLLM's, unless the model has one of its own kind."""
    scheduling = config.scheduler_config
    if scheduling.scheduler_cls is None:
        chosen = FairScheduler if scheduling.async_scheduling else FairSyncScheduler
        scheduling.scheduler_cls = f"{chosen.__module__}.{chosen.__qualname__}"


def _extend_workers(config: VllmConfig) -> None:
    """Lets workers go on with what other engines have begun, and load adapters unactivated."""
    extension = ResumingWorker if config.lora_config is None else _WorkerExtension
    if not config.parallel_config.worker_extension_cls:
        config.parallel_config.worker_extension_cls = (
            f"{extension.__module__}.{extension.__qualname__}"
        )
    if config.lora_config is not None and config.device_config.device_type == "cpu":
        from deployments import cpu_lora_ops

        cpu_lora_ops.install()


class _WorkerExtension(ResumingWorker, AdapterExtension):
    """Both, where there are adapters."""


def _leave_one_core_free() -> None:
    """Unless told how many threads to use, one fewer than there are cores.

    OpenMP's threads wait for one another by spinning: with one on every core, whatever else runs
    makes each of a step's hundreds of barriers wait for the kernel to switch (1 token/s was seen
    instead of 37 on two cores). Counts for the calling thread, which must be the core's.

    OMP_NUM_THREADS says nothing here: Ray sets it after OpenMP has read it.
    """
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND") != "nobind":
        _set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))


class _Outlet:
    """Stands where the core's output queue stands; hands each item on at once."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def put_nowait(self, item: tuple[int, EngineCoreOutputs]) -> None:
        self._emit(*item)


class VllmCore(EngineCoreProc):
    """vLLM's core without its sockets and its handshake.

    Built, run and ended on one thread, as OpenMP's settings are a thread's own. `accept`,
    `abort` and `stop` may be called from another thread.
    """

    def __init__(
        self,
        config: VllmConfig,
        emit: Emit,
        prompt_chunk: int | None = None,
        *,
        log_stats: bool = False,
    ) -> None:
        self.input_queue = queue.Queue[tuple[EngineCoreRequestType, Any]]()
        self.output_queue = _Outlet(emit)  # type: ignore[assignment]  # used as a sink only
        self.engine_index = 0
        self.engines_running = False
        self.shutdown_state = EngineShutdownState.RUNNING
        self.tensor_ipc_receiver = None
        self.has_coordinator = False
        self.frontend_stats_publish_address = None
        self.publish_dp_lb_stats = False
        self.last_counts = (0, 0)
        self.process_input_queue_block = True
        self.enable_fault_tolerance = False
        self.last_step_s = time.monotonic()
        self._chores = Chores()
        self._step_s = 0.0
        """What the last step took."""
        _take_fair_turns(config)
        _extend_workers(config)
        EngineCore.__init__(
            self,
            config,
            Executor.get_class(config),
            log_stats=log_stats,
            executor_fail_callback=self._executor_failed,
        )
        if isinstance(self.scheduler, FairTurns):
            self.scheduler.shape.prompt_chunk = prompt_chunk
        if config.device_config.device_type == "cpu":
            _leave_one_core_free()

    @property
    def max_running(self) -> int:
        """Sequences that one batch can hold."""
        return int(self.vllm_config.scheduler_config.max_num_seqs)

    @property
    def adapter_slots(self) -> int:
        """Different adapters that a batch may have; 0 where there are none."""
        lora = self.vllm_config.lora_config
        return 0 if lora is None else int(lora.max_loras)

    @property
    def adapter_capacity(self) -> int:
        """Adapters that host memory holds."""
        lora = self.vllm_config.lora_config
        return 0 if lora is None else int(lora.max_cpu_loras or lora.max_loras)

    @property
    def tasks(self) -> tuple[SupportedTask, ...]:
        """What the loaded model can do."""
        return self.get_supported_tasks()

    def accept(
        self, request: EngineCoreRequest, standing: Standing, produced: Sequence[int] = ()
    ) -> None:
        """Takes a request; its failure to preprocess is answered as an error output."""
        try:
            if produced:
                announce_produced(request, produced)
            ready = self.preprocess_add_request(request)
            ready[0].record_event(EngineCoreEventType.QUEUED)
            if produced:
                restore_output(ready[0], produced, self.structured_output_manager)
        except Exception:
            self._handle_request_preproc_error(request)
            return
        if isinstance(self.scheduler, FairTurns):
            self.scheduler.introduce(request.request_id, standing)
        self.input_queue.put_nowait((EngineCoreRequestType.ADD, ready))

    def synchronise(self, counters: Mapping[TenantId, int]) -> None:
        """Takes the router's counters; they hold from the next step on."""
        if isinstance(self.scheduler, FairTurns):
            self.scheduler.tell(counters)

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests; unknown ids are ignored. Takes effect within the current step."""
        self.aborts_queue.put_nowait(request_ids)
        self.input_queue.put_nowait((EngineCoreRequestType.ABORT, request_ids))

    def active_adapters(self) -> set[int]:
        """Adapters of the requests that run."""
        running = list(self.scheduler.running) if isinstance(self.scheduler, FairTurns) else []
        loras = [request.lora_request for request in running]
        return {lora.lora_int_id for lora in loras if lora is not None}

    def hold_adapter(self, adapter_id: int, path: str) -> Future[float]:
        """Loads an adapter into host memory between two steps, without taking a slot."""

        def go_on(budget_s: float) -> bool:
            return all(self._tell_workers("hold_adapter", adapter_id, path, budget_s))

        return self._between_steps(go_on)

    def activate_adapter(self, adapter_id: int) -> Future[float]:
        """Copies a held adapter to a slot between two steps, if no request needs them all."""
        has_slot = False

        def go_on(budget_s: float) -> bool:
            nonlocal has_slot
            # What has begun is completed: the workers take half of it for all of it.
            has_slot = has_slot or len(self.active_adapters()) < self.adapter_slots
            return not has_slot or all(self._tell_workers("activate_adapter", adapter_id, budget_s))

        return self._between_steps(go_on)

    def drop_adapter(self, adapter_id: int) -> Future[float]:
        """Forgets an adapter that no request uses, wherever it is."""

        def go_on(budget_s: float) -> bool:
            self._tell_workers("drop_adapter", adapter_id)
            return True

        return self._between_steps(go_on)

    def _tell_workers(self, method: str, *args: Any) -> list[Any]:
        return self.collective_rpc(method, args=args)

    def _between_steps(self, go_on: Callable[[float], bool]) -> Future[float]:
        chore = Chore(go_on)
        self.input_queue.put_nowait((EngineCoreRequestType.UTILITY, chore))
        return chore.done

    def _handle_client_request(self, request_type: EngineCoreRequestType, request: Any) -> None:
        if isinstance(request, Chore):
            self._chores.add(request)
            if not self.has_work():
                self._chores.go_on(0.0, is_busy=False)
        else:
            super()._handle_client_request(request_type, request)

    def run(self) -> None:
        """Steps until `stop`. Raises what a step raises; the core is then unusable."""
        try:
            self.run_busy_loop()
        except SystemExit:
            # The loop's way to say that it was asked to stop.
            self.shutdown()  # type: ignore[no-untyped-call]  # vLLM's

    def stop(self) -> None:
        """Aborts what runs and makes `run` return."""
        self.shutdown_state = EngineShutdownState.REQUESTED
        self.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))

    @property
    def prefix_tokens(self) -> int:
        """Tokens that the prefix cache holds; 0 is none."""
        cache = self.vllm_config.cache_config
        if not cache.enable_prefix_caching:
            return 0
        return int(cache.num_gpu_blocks or 0) * int(cache.block_size)

    def counts(self) -> tuple[int, int, float]:
        """Requests running, requests waiting, share of KV-cache blocks in use."""
        running, waiting = self.scheduler.get_request_counts()
        return running, waiting, float(self.scheduler.get_kv_cache_usage())

    def _process_engine_step(self) -> bool:
        # Before the step and not after it: what has just come need not wait for one more.
        self._chores.go_on(self._step_s, is_busy=True)
        began_s = time.monotonic()
        has_executed: bool = super()._process_engine_step()
        self.last_step_s = time.monotonic()
        self._step_s = self.last_step_s - began_s
        if not self.has_work():
            self._chores.go_on(self._step_s, is_busy=False)
        return has_executed

    def _executor_failed(self) -> None:
        self.input_queue.put_nowait((EngineCoreRequestType.EXECUTOR_FAILED, b""))
