"""Builds the parts of an engine replica from its model's settings.

Imports vLLM: import it lazily, after the process's environment is set.
"""

import logging
from pathlib import Path
from typing import Any, cast

from vllm.config import VllmConfig

from deployments.adapter_store import AdapterStore
from deployments.adapter_tier import AdapterFiles
from deployments.echo_adapters import AdapterPace
from deployments.echo_core import EchoCore
from deployments.echo_pace import Pace
from deployments.engine_server import Core
from deployments.vllm_core import Emit, VllmCore, vllm_config_of
from serve_app.config_adapters import AdapterCacheSettings
from serve_app.config_model import EchoEngine, HuggingFaceSource, ModelSettings
from serve_app.errors import EngineStartError
from serve_app.lora_room import measure_room, read_shape
from serve_app.policy.adapter_shapes import Dtype, shape_of
from serve_app.policy.placement import plan_placement

logger = logging.getLogger(__name__)


def resolve_config(model: ModelSettings, path: str) -> VllmConfig:
    """Returns vLLM's configuration of a model whose files are in a local folder."""
    args = _adapter_args(model, path) | _engine_args(model)
    return vllm_config_of(args, path, model.name, on_cpu=model.accelerator.kind == "cpu")


def build_core(
    model: ModelSettings, config: VllmConfig, emit: Emit, *, log_stats: bool = False
) -> Core:
    """Returns what steps the model; to be called on the thread that will run it.

    Args:
        model: What is served.
        config: As it was resolved.
        emit: Takes each step's outputs for one client.
        log_stats: Whether a real core says with its outputs how it stands.
    """
    if isinstance(model.engine, EchoEngine):
        engine = model.engine
        adapters = _adapter_pace(engine, config)
        return EchoCore(
            config,
            emit,
            _pace_of(engine),
            adapters,
            engine.prefix_cache_tokens,
            model.prompt_chunk_tokens,
        )
    return VllmCore(config, emit, model.prompt_chunk_tokens, log_stats=log_stats)


def build_store(settings: AdapterCacheSettings, config: VllmConfig) -> AdapterFiles:
    """Returns what brings adapters to this node, for an engine of this configuration.

    Raises:
        EngineStartError: Its kind of model takes no adapters.
    """
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    hf_config = config.model_config.hf_text_config.to_dict()
    assert config.lora_config is not None
    shape = shape_of(hf_config, cast("Dtype", dtype), config.lora_config.target_modules)
    if shape is None:
        raise EngineStartError(
            f"adapters are not supported for models of type {hf_config.get('model_type')!r}; "
            "set the model's adapters to null"
        )
    return AdapterStore(settings, shape, config.lora_config.max_lora_rank)


def _pace_of(engine: EchoEngine) -> Pace | None:
    if engine.batch is not None:
        return Pace(**engine.batch.model_dump())
    return Pace(1.0 / engine.tokens_per_s) if engine.tokens_per_s else None


def _adapter_pace(engine: EchoEngine, config: VllmConfig) -> AdapterPace:
    lora = config.lora_config
    if lora is None:
        return AdapterPace()
    capacity = lora.max_cpu_loras or lora.max_loras
    return AdapterPace(lora.max_loras, capacity, engine.adapter_load_s, engine.adapter_activate_s)


def _echo_args(engine: EchoEngine) -> dict[str, Any]:
    return {
        "max_num_seqs": engine.max_num_seqs,
        "max_model_len": engine.max_model_len,
        "enforce_eager": True,
    }


def _adapter_args(model: ModelSettings, folder: str) -> dict[str, Any]:
    if model.adapters is None:
        return {}
    shape = read_shape(model, Path(folder), may_fetch=True)
    room = measure_room(model, model.adapters, shape)
    logger.info("Adapters of %s: %s.", model.name, room.describe())
    args: dict[str, Any] = {
        "enable_lora": True,
        "max_lora_rank": model.adapters.max_rank,
        "max_loras": room.slots,
        "max_cpu_loras": room.in_memory,
    }
    if shape is not None:
        # Else vLLM also keeps slots for the vocabulary's layers, which no adapter here changes.
        # They take memory, a product in every step, and time when an adapter comes to a slot.
        names = {path.rpartition(".")[2] for path in shape.modules}
        args["lora_target_modules"] = sorted(names)
    return args


def _engine_args(model: ModelSettings) -> dict[str, Any]:
    """The configured engine arguments and those that other settings of the model stand for."""
    if isinstance(model.engine, EchoEngine):
        return _echo_args(model.engine)
    args = model.engine.args | dict(plan_placement(model).engine_args)
    args["tensor_parallel_size"] = model.tensor_parallel_size
    args["pipeline_parallel_size"] = model.pipeline_parallel_size
    if isinstance(model.source, HuggingFaceSource) and model.source.revision is not None:
        args["revision"] = model.source.revision
    return args
