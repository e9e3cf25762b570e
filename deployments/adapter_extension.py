"""Loads adapters into host memory on a worker, without giving them a slot of the batch.

vLLM's `add_lora` always activates: as a prefetch it takes a slot, and may take one in use. Here
the two are apart: `hold_adapter` makes tensors of what was read beside the steps, and packs them,
`activate_adapter` copies them to a slot; both a part at a time between steps. Where no slot was
free, vLLM copies in the step that needs it.

A worker extension: vLLM mixes this class into its worker (`worker_extension_cls`), in every process
that has one. Imports vLLM.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from vllm.lora.layers import ClassificationHeadWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LoRAModelManager, LRUCacheLoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from deployments.adapter_reading import Bytes, Span, spans_of, take

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class AdapterExtension:
    """What vLLM's worker can do besides; called by name, on the thread that steps."""

    model_runner: Any

    @property
    def _adapters(self) -> LRUCacheLoRAModelManager:
        manager: LRUCacheLoRAModelManager = self.model_runner.lora_manager._adapter_manager
        return manager

    def hold_adapter(self, adapter_id: int, path: str, budget_s: float = math.inf) -> bool:
        """Takes an adapter from a local folder into host memory. Known ids are left alone.

        Returns:
            Whether it is there. Else it is to be called again.

        Raises:
            Exception: It cannot be used with this model; nothing has changed.
        """
        if adapter_id in self._adapters._registered_adapters:
            return True
        lora_manager = self.model_runner.lora_manager
        return self._go_on(
            "held", adapter_id, budget_s, lambda: _take_in(lora_manager, adapter_id, path)
        )

    def activate_adapter(self, adapter_id: int, budget_s: float = math.inf) -> bool:
        """Copies an adapter that is held to a slot, in the place of the longest unused one.

        Returns:
            Whether it is there. Else it is to be called again, and until then no request may run
            with the adapter, as vLLM takes it for there.
        """
        with gpu_sync_allowed():
            begin = partial(_copy_to_slot, self._adapters, adapter_id)
            try:
                return self._go_on("copied", adapter_id, budget_s, begin)
            except Exception:
                self._adapters.deactivate_adapter(adapter_id)  # Half of it is as good as none.
                raise

    def _go_on(
        self, what: str, adapter_id: int, budget_s: float, begin: Callable[[], Iterator[None]]
    ) -> bool:
        """Does a part of some work on an adapter; returns whether it is done."""
        begun: dict[tuple[str, int], Iterator[None]] = self.__dict__.setdefault("_begun", {})
        key = what, adapter_id
        if key not in begun:
            begun[key] = begin()
        until_s = time.monotonic() + budget_s
        is_done = True
        try:
            for _ in begun[key]:
                if time.monotonic() >= until_s:
                    is_done = False
                    break
        finally:
            if is_done:
                del begun[key]
        return is_done

    def drop_adapter(self, adapter_id: int) -> bool:
        """Forgets an adapter, in its slot and in host memory; says whether it was there."""
        self.__dict__.get("_begun", {}).pop(("copied", adapter_id), None)
        return bool(self.model_runner.lora_manager.remove_adapter(adapter_id))


def _take_in(lora_manager: Any, adapter_id: int, path: str) -> Iterator[None]:
    """Does what vLLM's `_load_adapter` and `add_adapter` do, module by module.

    What was read ahead is not copied again: the tensors are parts of that memory.
    """
    adapters: LRUCacheLoRAModelManager = lora_manager._adapter_manager
    assert len(adapters) < adapters.capacity, "the caller makes room first"
    content = take(adapter_id)
    if content is None:
        lora = lora_manager._load_adapter(LoRARequest(str(adapter_id), adapter_id, path))
    else:
        lora = yield from _make_tensors(lora_manager, adapter_id, path, content)
    _check_sizes(adapters, lora)
    yield
    adapters.add_adapter(lora)


def _make_tensors(
    lora_manager: Any, adapter_id: int, path: str, content: Bytes
) -> Generator[None, None, LoRAModel]:
    helper = PEFTHelper.from_local_dir(path, lora_manager.max_position_embeddings)
    helper.validate_legal(lora_manager.lora_config)
    model = lora_manager._adapter_manager.model
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    yield
    loras: dict[str, LoRALayerWeights] = {}
    memory = content.data
    for name, span, begin in spans_of(content):
        # What vLLM keeps of the two matrices of a module is merged by name.
        part = LoRAModel.from_lora_tensors(
            adapter_id,
            {name: tensor_of(memory, span, begin)},
            helper,
            device="cpu",
            dtype=lora_manager.lora_config.lora_dtype,
            model_vocab_size=lora_manager.vocab_size,
            weights_mapper=None if mapper is None else mapper.get_rename_mapper(),
            skip_prefixes=getattr(model, "lora_skip_prefixes", None),
        )
        for module, weights in part.loras.items():
            known = loras.setdefault(module, weights)
            known.lora_a = weights.lora_a if known.lora_a is None else known.lora_a
            known.lora_b = weights.lora_b if known.lora_b is None else known.lora_b
        yield
    _check_names(lora_manager._adapter_manager, loras)
    return LoRAModel(adapter_id, helper.r, loras)


def tensor_of(memory: memoryview, span: Span, begin: int) -> torch.Tensor:
    """Returns a tensor that is a part of a file's memory."""
    dtype, n = _DTYPES[span.dtype], math.prod(span.shape)
    return torch.frombuffer(memory, dtype=dtype, count=n, offset=begin).view(span.shape)


def _check_names(adapters: LRUCacheLoRAModelManager, modules: Iterable[str]) -> None:
    """Refuses what vLLM would not use: it would be an answer without it."""
    packed = adapters.packed_modules
    parts = (part for name in adapters.modules for part in packed.get(name, [name]))
    known = {part.rpartition(".")[2] for part in parts}
    for module in modules:
        if module.rpartition(".")[2] not in known:
            raise ValueError(f"{module} is not among the modules that this engine adapts")


def _copy_to_slot(adapters: LRUCacheLoRAModelManager, adapter_id: int) -> Iterator[None]:
    """Does what vLLM's `activate_adapter` does, layer by layer."""
    if adapter_id in adapters._active_adapters or any(
        isinstance(module, ClassificationHeadWithLoRA) for module in adapters.modules.values()
    ):
        adapters.activate_adapter(adapter_id)
        return
    if len(adapters._active_adapters) >= adapters.lora_slots:
        adapters._active_adapters.remove_oldest()
    slot = adapters.lora_index_to_id.index(None)
    adapters._active_adapters[adapter_id] = None
    adapters.lora_index_to_id[slot] = adapter_id
    lora = adapters._registered_adapters[adapter_id]
    is_told = _is_told_ranks(adapters)
    for name, module in adapters.modules.items():
        weights = adapters._get_lora_layer_weights(lora, name)
        if weights:
            module.set_lora(slot, weights.lora_a, weights.lora_b)
        elif is_told:
            continue  # It will hear of rank 0 here, and read nothing of what another has left.
        else:
            module.reset_lora(slot)
        yield
        if adapters.lora_index_to_id[slot] != adapter_id:
            return  # A step has given the slot to another; it will do this itself when it must.
    if is_told:
        from deployments.cpu_lora_ops import note_slot  # Only CPUs have these operations.

        note_slot(adapters, adapter_id)


def _is_told_ranks(adapters: LoRAModelManager) -> bool:
    """Whether products are computed by `cpu_lora_ops`, at the ranks that `note_slot` tells."""
    if adapters.device.type != "cpu":
        return False
    from deployments.cpu_lora_ops import CpuPunica

    wrappers = adapters.punica_wrapper_mapping.values()
    return all(isinstance(wrapper, CpuPunica) for wrapper in wrappers)


def _check_sizes(adapters: LoRAModelManager, lora: LoRAModel) -> None:
    """Refuses what would not fit its slot; found there, it would end the step and the engine."""
    for name, (n_out, n_in) in _sizes_of_slots(adapters).items():
        weights = lora.loras.get(name)
        if weights is None:
            continue
        a, b = weights.lora_a, weights.lora_b
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ValueError(f"{name} must have two matrices with one rank")
        if a.shape[0] > adapters.lora_config.max_lora_rank:
            raise ValueError(
                f"{name} has rank {a.shape[0]}; this engine takes up to "
                f"{adapters.lora_config.max_lora_rank}"
            )
        if (b.shape[0], a.shape[1]) != (n_out, n_in):
            raise ValueError(
                f"{name} is for {a.shape[1]} inputs and {b.shape[0]} outputs; "
                f"this model has {n_in} and {n_out} there"
            )


def _sizes_of_slots(adapters: LoRAModelManager) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the plain linear layers, by module name before packing.

    Those that are shared out over several GPUs are left to vLLM, and so are experts.
    """
    sizes = {}
    for name, module in adapters.modules.items():
        a_stacks = getattr(module, "lora_a_stacked", ())
        b_stacks = getattr(module, "lora_b_stacked", ())
        parts = adapters.packed_modules.get(name, [name])
        is_plain = getattr(module, "tp_size", 1) == 1 and len(parts) == len(a_stacks)
        if is_plain and isinstance(module, BaseLinearLayerWithLoRA):
            for part, a, b in zip(parts, a_stacks, b_stacks, strict=True):
                sizes[part] = (b.shape[2], a.shape[3])
    return sizes
