"""Finds settings of one model that contradict each other.

Each rule returns one text that names both settings, both values and the remedy, or None.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve_app.config_model import ModelSettings


def find_conflicts(model: "ModelSettings") -> list[str]:
    """Return what the model's settings contradict; called when each alone is valid."""
    return [text for find in _RULES if (text := find(model))]


def _find_parallel_on_cpu(model: "ModelSettings") -> str | None:
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = getattr(model, name)
        if size > 1 and model.accelerator.kind == "cpu":
            return (
                f"{name} is {size} while accelerator.kind is 'cpu': an engine on the processor is "
                f"one process; set {name} to 1, or accelerator.kind to gpu"
            )
    return None


def _find_pipeline_of_echo(model: "ModelSettings") -> str | None:
    if model.pipeline_parallel_size > 1 and model.engine.kind == "echo":
        return (
            f"pipeline_parallel_size is {model.pipeline_parallel_size} while engine.kind is "
            "'echo': it has no layers; set pipeline_parallel_size to 1"
        )
    return None


def _find_gpu_memory_on_cpu(model: "ModelSettings") -> str | None:
    for name in ("gpu_memory_utilization", "kv_cache_memory_bytes"):
        value = _engine_arg(model, name)
        if value is not None and model.accelerator.kind == "cpu":
            return (
                f"engine.args.{name} is {value} while accelerator.kind is 'cpu': "
                "set accelerator.kv_cache_gib instead"
            )
    return None


def _find_group_on_one_gpu(model: "ModelSettings") -> str | None:
    gpus = model.tensor_parallel_size * model.pipeline_parallel_size
    share = _share_of_gpu(model)
    if gpus > 1 and share <= 0.5:
        return (
            f"accelerator.share is {share} while one engine uses {gpus} GPUs: two of its parts "
            "could land on one GPU; set accelerator.share above 0.5"
        )
    return None


def _find_unplanned_sharing(model: "ModelSettings") -> str | None:
    share = _share_of_gpu(model)
    if share == 1 or model.engine.kind != "vllm":
        return None
    if _engine_arg(model, "kv_cache_memory_bytes") is None:
        return (
            f"accelerator.share is {share} while engine.args.kv_cache_memory_bytes is not set: "
            "engines that start together on one GPU measure each other's memory; set the bytes"
        )
    utilization = _engine_arg(model, "gpu_memory_utilization")
    if isinstance(utilization, int | float) and utilization > share:
        return (
            f"engine.args.gpu_memory_utilization is {utilization} while accelerator.share is "
            f"{share}: the engine would take more than its share; lower one or raise the other"
        )
    return None


def _find_batch_below_prompt(model: "ModelSettings") -> str | None:
    batched = _engine_arg(model, "max_num_batched_tokens")
    length = _engine_arg(model, "max_model_len")
    if _engine_arg(model, "enable_chunked_prefill") is not False or not _are_ints(batched, length):
        return None
    if batched < length:
        return (
            f"engine.args.max_num_batched_tokens is {batched} while max_model_len is {length} and "
            "enable_chunked_prefill is false: the longest prompt would never fit a step; raise "
            f"max_num_batched_tokens to {length}, or remove enable_chunked_prefill"
        )
    return None


def _find_batch_below_requests(model: "ModelSettings") -> str | None:
    batched = _engine_arg(model, "max_num_batched_tokens")
    requests = _engine_arg(model, "max_num_seqs")
    if _are_ints(batched, requests) and batched < requests:
        return (
            f"engine.args.max_num_batched_tokens is {batched} while max_num_seqs is {requests}: "
            "each running request needs a token a step; raise the first or lower the second"
        )
    return None


_RULES = (
    _find_parallel_on_cpu,
    _find_pipeline_of_echo,
    _find_gpu_memory_on_cpu,
    _find_group_on_one_gpu,
    _find_unplanned_sharing,
    _find_batch_below_prompt,
    _find_batch_below_requests,
)


def _engine_arg(model: "ModelSettings", name: str) -> Any:
    return model.engine.args.get(name) if model.engine.kind == "vllm" else None


def _share_of_gpu(model: "ModelSettings") -> float:
    return model.accelerator.share if model.accelerator.kind == "gpu" else 1.0


def _are_ints(*values: object) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
