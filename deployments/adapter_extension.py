"""Loads adapters into host memory on a worker, without giving them a slot of the batch.

vLLM's `add_lora` always activates: as a prefetch it takes a slot, and may take one in use. Here
the two are apart: `hold_adapter` reads, casts and packs between two steps, `activate_adapter`
copies to a slot, a part at a time between others. Where none was free, vLLM does it in the step
that needs it.

A worker extension: vLLM mixes this class into its worker (`worker_extension_cls`), in every process
that has one. Imports vLLM.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

from vllm.lora.layers import ClassificationHeadWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager, LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.utils.gpu_sync_debug import gpu_sync_allowed


class AdapterExtension:
    """What vLLM's worker can do besides; called by name, on the thread that steps."""

    model_runner: Any

    @property
    def _adapters(self) -> LRUCacheLoRAModelManager:
        manager: LRUCacheLoRAModelManager = self.model_runner.lora_manager._adapter_manager
        return manager

    def hold_adapter(self, adapter_id: int, path: str) -> None:
        """Takes an adapter from a local folder into host memory. Known ids are left alone.

        Raises:
            Exception: It cannot be used with this model; nothing has changed.
        """
        lora_manager, adapters = self.model_runner.lora_manager, self._adapters
        if adapter_id in adapters._registered_adapters:
            return
        assert len(adapters) < adapters.capacity, "the caller makes room first"
        lora = lora_manager._load_adapter(LoRARequest(str(adapter_id), adapter_id, path))
        _check_sizes(adapters, lora)
        adapters.add_adapter(lora)

    def activate_adapter(self, adapter_id: int, budget_s: float = math.inf) -> bool:
        """Copies an adapter that is held to a slot, in the place of the longest unused one.

        Returns:
            Whether it is there. Else it is to be called again, and until then no request may run
            with the adapter, as vLLM takes it for there.
        """
        with gpu_sync_allowed():
            copying: dict[int, Iterator[None]] = self.__dict__.setdefault("_copying", {})
            if adapter_id not in copying:
                copying[adapter_id] = _copy_to_slot(self._adapters, adapter_id)
            until_s = time.monotonic() + budget_s
            try:
                for _ in copying[adapter_id]:
                    if time.monotonic() >= until_s:
                        return False
            except Exception:
                self._adapters.deactivate_adapter(adapter_id)  # Half of it is as good as none.
                del copying[adapter_id]
                raise
            del copying[adapter_id]
            return True

    def drop_adapter(self, adapter_id: int) -> bool:
        """Forgets an adapter, in its slot and in host memory; says whether it was there."""
        self.__dict__.get("_copying", {}).pop(adapter_id, None)
        return bool(self.model_runner.lora_manager.remove_adapter(adapter_id))


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
    for name, module in adapters.modules.items():
        weights = adapters._get_lora_layer_weights(lora, name)
        if weights:
            module.set_lora(slot, weights.lora_a, weights.lora_b)
        else:
            module.reset_lora(slot)
        yield
        if adapters.lora_index_to_id[slot] != adapter_id:
            return  # A step has given the slot to another; it will do this itself when it must.
    if adapters.device.type == "cpu":
        from deployments.cpu_lora_ops import note_slot  # Only CPUs have these operations.

        note_slot(adapters, adapter_id)


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
