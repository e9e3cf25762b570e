"""Looks up what adapters take on a model's engines: sizes in its files, memory of the machine."""

import json
from pathlib import Path

import psutil

from serve_app.config_lora import LoraSettings
from serve_app.config_model import ModelSettings
from serve_app.embedded_model import default_model_folder
from serve_app.policy.adapter_memory import AdapterRoom, plan_room
from serve_app.policy.adapter_shapes import Dtype, ModelShape, shape_of

_DTYPES: dict[str, Dtype] = {
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
}
_MAX_NUM_SEQS = 256
"""vLLM's own, where the settings say nothing."""


def read_shape(model: ModelSettings, folder: Path, *, may_fetch: bool = False) -> ModelShape | None:
    """Returns the sizes of a model's linear layers; None where they are not known.

    Args:
        model: Which.
        folder: Its files. One of the hub has its configuration in the hub's own cache.
        may_fetch: Whether that is fetched if it is not there.
    """
    try:
        config = json.loads(_find_config(model, folder, may_fetch=may_fetch).read_text())
        asked = model.engine.args.get("dtype") if model.engine.kind == "vllm" else None
        named = config.get("dtype") or config.get("torch_dtype")
        dtype = _DTYPES.get(str(asked)) or _DTYPES.get(str(named)) or "bfloat16"
        return shape_of(config, dtype)
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _find_config(model: ModelSettings, folder: Path, *, may_fetch: bool) -> Path:
    if model.source.kind != "huggingface":
        return folder / "config.json"
    from huggingface_hub import hf_hub_download

    found = hf_hub_download(
        model.source.id,
        "config.json",
        revision=model.source.revision,
        local_files_only=not may_fetch,
    )
    return Path(found)


def measure_room(
    model: ModelSettings, settings: LoraSettings, shape: ModelShape | None
) -> AdapterRoom:
    """Returns how many adapters an engine on this machine has room for."""
    host_bytes = psutil.virtual_memory().total
    accelerator = model.accelerator
    device_bytes = (
        host_bytes if accelerator.kind == "cpu" else _measure_gpus(model, accelerator.share)
    )
    return plan_room(settings, shape, _max_num_seqs(model), device_bytes, host_bytes)


def describe_room(model: ModelSettings) -> str | None:
    """Says what a model's adapters take where its files are at hand; None without adapters."""
    if model.adapters is None:
        return None
    folder = _find_folder(model)
    shape = None if folder is None else read_shape(model, folder)
    total = psutil.virtual_memory().total if model.accelerator.kind == "cpu" else None
    room = plan_room(model.adapters, shape, _max_num_seqs(model), total, total)
    is_decided = model.adapters.slots is not None or (shape is not None and total is not None)
    words = room.describe() if is_decided else room.describe_each()
    return f"up to rank {model.adapters.max_rank}; {words}"


def _find_folder(model: ModelSettings) -> Path | None:
    match model.source.kind:
        case "local":
            return Path(model.source.path)
        case "embedded":
            return default_model_folder()
        case "huggingface":
            return Path()
        case _:
            return None


def _max_num_seqs(model: ModelSettings) -> int:
    if model.engine.kind == "echo":
        return model.engine.max_num_seqs
    value = model.engine.args.get("max_num_seqs")
    return value if isinstance(value, int) else _MAX_NUM_SEQS


def _measure_gpus(model: ModelSettings, share: float) -> int | None:
    """Memory of the GPUs that share a layer, asked of the driver: no context is made for it."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return None
    total = current_platform.get_device_total_memory()
    return int(total * share * model.tensor_parallel_size)
