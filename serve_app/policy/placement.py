"""Decides what one engine asks of Ray, and what vLLM must be told so that it uses just that.

Inputs: one model's settings.

The rule:
  - On the processor, the engine is one actor with a share of a node's CPUs.
  - Within one node and on whole GPUs, it is one bundle with all GPUs, run by vLLM's own processes.
  - Over several nodes, or on parts of several GPUs, each GPU is a bundle with a Ray worker in it.

Invariants:
  1. every_gpu_is_asked_for: the bundles hold tensor x pipeline x share GPUs, none on the processor.
  2. actor_fits_first_bundle: the replica's own actor asks no more than its first bundle holds.
  3. bundles_are_possible: no bundle asks for a fraction above one GPU; Ray has no such thing.
  4. one_node_unless_pipelined: without pipeline parallelism all bundles are on one node.
  5. parts_are_on_different_gpus: two bundles of one engine do not fit on one GPU.
  6. type_is_pinned: every bundle asks for the GPU type that the settings name, if they name one.

Source: Ray's placement groups and fractional resources (Ray 2.60, user guide, "Scheduling").
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serve_app.config_model import CpuAccelerator, GpuAccelerator, ModelSettings

_PIN = 0.001
"""Amount of `accelerator_type:X` that pins a bundle to a type without using it up; Ray's custom."""


@dataclass(frozen=True)
class Placement:
    """What one engine replica asks of Ray.

    Attributes:
        num_cpus: CPUs of the replica's own actor.
        num_gpus: GPUs of the replica's own actor; 0 if Ray workers hold them.
        bundles: Placement-group bundles; empty for an actor without a group. The actor is in the
            first.
        strategy: How Ray spreads the bundles.
        engine_args: Engine arguments that follow from the placement. They go over the model's own.
        env: Environment variables that follow from the placement, set before vLLM is imported.
    """

    num_cpus: float
    num_gpus: float = 0.0
    bundles: tuple[Mapping[str, float], ...] = ()
    strategy: Literal["STRICT_PACK", "PACK"] = "STRICT_PACK"
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


def plan_placement(model: ModelSettings) -> Placement:
    """Return what one engine of the model asks of Ray."""
    match model.accelerator:
        case CpuAccelerator() as cpu:
            return Placement(num_cpus=cpu.cpus, env=_plan_cpu_env(cpu))
        case GpuAccelerator() as gpu:
            if _needs_ray_workers(model, gpu):
                return _plan_ray_workers(model, gpu)
            return _plan_one_process_tree(model, gpu)


def _plan_cpu_env(cpu: CpuAccelerator) -> dict[str, str]:
    env = {"VLLM_CPU_KVCACHE_SPACE": str(cpu.kv_cache_gib)}
    if cpu.threads is not None:
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(cpu.threads)}
    return env


def _needs_ray_workers(model: ModelSettings, gpu: GpuAccelerator) -> bool:
    shares_several = gpu.share < 1 and model.tensor_parallel_size > 1
    return model.pipeline_parallel_size > 1 or shares_several


def _plan_ray_workers(model: ModelSettings, gpu: GpuAccelerator) -> Placement:
    n_gpus = model.tensor_parallel_size * model.pipeline_parallel_size
    bundle = {"GPU": gpu.share, "CPU": gpu.cpus_per_gpu} | _pin(gpu)
    return Placement(
        num_cpus=gpu.cpus_per_gpu,
        bundles=(bundle,) * n_gpus,
        strategy="PACK" if model.pipeline_parallel_size > 1 else "STRICT_PACK",
        engine_args={"distributed_executor_backend": "ray"} | _plan_memory(model, gpu),
        env={"VLLM_RAY_PER_WORKER_GPUS": str(gpu.share)} if gpu.share < 1 else {},
    )


def _plan_one_process_tree(model: ModelSettings, gpu: GpuAccelerator) -> Placement:
    num_gpus = model.tensor_parallel_size * gpu.share
    num_cpus = model.tensor_parallel_size * gpu.cpus_per_gpu
    # Named, because in a placement group vLLM chooses Ray and refuses a bundle of many GPUs.
    executor = "mp" if model.tensor_parallel_size > 1 else "uni"
    return Placement(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        bundles=({"GPU": num_gpus, "CPU": num_cpus} | _pin(gpu),),
        engine_args={"distributed_executor_backend": executor} | _plan_memory(model, gpu),
    )


def _pin(gpu: GpuAccelerator) -> dict[str, float]:
    return {} if gpu.type is None else {f"accelerator_type:{gpu.type}": _PIN}


def _plan_memory(model: ModelSettings, gpu: GpuAccelerator) -> dict[str, Any]:
    """On a shared GPU the engine must not insist on memory beyond its share."""
    if gpu.share == 1 or model.engine.kind != "vllm":
        return {}
    return {"gpu_memory_utilization": model.engine.args.get("gpu_memory_utilization", gpu.share)}
