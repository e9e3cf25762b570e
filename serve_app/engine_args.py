"""Checks what a model's settings hand to vLLM: engine arguments, environment and parser names.

The names and types come from the installed vLLM, so that a setting that this version does not know
is an error here and not minutes later on a GPU. Nothing is constructed: configuration objects of
vLLM look for devices, and this check also runs where there are none. vLLM is imported on first use,
which costs seconds; importing this module does not.
"""

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.config_problems import Problem, extend_path, show_value, suggest
from serve_app.vllm_fields import Fields

_log = logging.getLogger(__name__)

_ADAPTERS = "set the model's adapters"
_SET_BY_PLATFORM = "the platform sets it from accelerator, tensor_parallel_size and replicas"
_OWN_SCHEDULER = "the platform's own scheduler shares each engine fairly, remove it"
RESERVED_ARGS: dict[str, str] = {
    "model": "set the model's source",
    "model_weights": "set the model's source",
    "tokenizer": "the tokenizer comes with the model's source, remove it",
    "served_model_name": "set the model's name and aliases",
    "revision": "set source.revision",
    "tokenizer_revision": "set source.revision",
    "code_revision": "set source.revision",
    "hf_token": "set HF_TOKEN in the environment of the machines, as a file is no place for it",
    "tensor_parallel_size": "set the model's tensor_parallel_size",
    "pipeline_parallel_size": "set the model's pipeline_parallel_size",
    "prefill_context_parallel_size": "it is not supported yet, remove it",
    "distributed_executor_backend": _SET_BY_PLATFORM,
    "device_ids": _SET_BY_PLATFORM,
    "nnodes": _SET_BY_PLATFORM,
    "node_rank": _SET_BY_PLATFORM,
    "master_addr": _SET_BY_PLATFORM,
    "master_port": _SET_BY_PLATFORM,
    "scheduler_cls": _OWN_SCHEDULER,
    "scheduling_policy": _OWN_SCHEDULER,
    "enable_lora": _ADAPTERS,
    "max_loras": f"{_ADAPTERS}.slots",
    "max_lora_rank": f"{_ADAPTERS}.max_rank",
    "max_cpu_loras": f"{_ADAPTERS}.in_memory",
    "worker_extension_cls": "the platform's own loads adapters, remove it",
    "max_num_queued_reqs": "set limits.max_waiting",
    "max_num_queued_tokens": "set limits.max_waiting",
    "disable_log_stats": "the platform needs the engine's statistics, remove it",
    "enable_log_requests": "the platform logs requests without their prompts, remove it",
    "tokens_only": "the platform's gateway is the front end, remove it",
}
RESERVED_ENV: dict[str, str] = {
    "VLLM_CPU_KVCACHE_SPACE": "set accelerator.kv_cache_gib",
    "VLLM_CPU_OMP_THREADS_BIND": "set accelerator.threads",
    "VLLM_RAY_PER_WORKER_GPUS": "set accelerator.share",
    "VLLM_RAY_BUNDLE_INDICES": _SET_BY_PLATFORM,
    "VLLM_API_KEY": "set auth",
    "HF_TOKEN": RESERVED_ARGS["hf_token"],
}
_ENV_PREFIXES = ("VLLM_", "NCCL_", "HF_", "TORCH", "CUDA_", "OMP_")


def find_problems(model: Mapping[Any, Any], path: str) -> list[Problem]:
    """Return what is wrong with the parts of one model that vLLM defines.

    Args:
        model: One entry of `models` as it was written; it need not be valid otherwise.
        path: Where that entry is, such as `models[0]`.
    """
    engine = model.get("engine", {"kind": "vllm"})
    if not isinstance(engine, Mapping) or engine.get("kind") != "vllm":
        return []
    if importlib.util.find_spec("vllm") is None:
        _log.warning("%s.engine.args were not checked: vLLM is not installed here", path)
        return []
    sections = (
        (engine.get("args"), f"{path}.engine.args", _find_arg_problems),
        (engine.get("env"), f"{path}.engine.env", _find_env_problems),
        (model.get("front_end"), f"{path}.front_end", _find_tool_parser_problems),
    )
    return [
        problem
        for section, place, find in sections
        if isinstance(section, Mapping)
        for problem in find(section, place)
    ]


def _find_arg_problems(args: Mapping[Any, Any], path: str) -> Iterator[Problem]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    own = {name: value for name, value in args.items() if not _why_reserved(str(name))}
    for name, value in args.items():
        remedy = _why_reserved(str(name))
        if remedy:
            place = extend_path(path, name)
            yield Problem(place, show_value(value, place), f"is not for this file: {remedy}.")
    yield from Fields(AsyncEngineArgs, "an engine argument of this vLLM").find_problems(own, path)
    yield from _find_reasoning_parser_problems(own, path)


def _why_reserved(name: str) -> str | None:
    if name.startswith("data_parallel_"):
        return "set replicas, as each replica is an engine of its own"
    return RESERVED_ARGS.get(name)


def _find_env_problems(env: Mapping[Any, Any], path: str) -> Iterator[Problem]:
    from vllm.envs import environment_variables

    for name in map(str, env):
        place = extend_path(path, name)
        if name in RESERVED_ENV:
            yield Problem(place, None, f"is not for this file: {RESERVED_ENV[name]}.")
        elif not name.startswith(_ENV_PREFIXES):
            prefixes = ", ".join(_ENV_PREFIXES)
            yield Problem(place, None, f"must begin with one of {prefixes}; remove it.")
        elif name.startswith("VLLM_") and name not in environment_variables:
            remedy = suggest(name, environment_variables)
            yield Problem(place, None, f"is not a variable of this vLLM; {remedy}")


def _find_tool_parser_problems(front_end: Mapping[Any, Any], path: str) -> Iterator[Problem]:
    from vllm.tool_parsers import ToolParserManager

    known = ToolParserManager.list_registered()
    yield from _find_unknown_parser(front_end, path, "tool_call_parser", known)


def _find_reasoning_parser_problems(args: Mapping[Any, Any], path: str) -> Iterator[Problem]:
    from vllm.reasoning import ReasoningParserManager

    if args.get("reasoning_parser_plugin"):
        return  # the plugin registers names that are not known before it is imported
    known = ReasoningParserManager.list_registered()
    yield from _find_unknown_parser(args, path, "reasoning_parser", known)


def _find_unknown_parser(
    section: Mapping[Any, Any], path: str, field: str, known: list[str]
) -> Iterator[Problem]:
    name = section.get(field)
    if isinstance(name, str) and name and name not in known:
        remedy = suggest(name, known, list_all=True)
        yield Problem(f"{path}.{field}", show_value(name), f"is not a parser of vLLM; {remedy}")
