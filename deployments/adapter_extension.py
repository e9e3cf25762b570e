"""Loads adapters into host memory on a worker, without giving them a slot of the batch.

vLLM's `add_lora` always activates: as a prefetch it takes a slot, and may take one in use. Here
the two are apart: `hold_adapter` reads, casts and packs between two steps, `activate_adapter`
copies to a slot between two others. Where none was free, vLLM does it in the step that needs it.

A worker extension: vLLM mixes this class into its worker (`worker_extension_cls`), in every process
that has one. Imports vLLM.
"""

from typing import Any

from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.utils.gpu_sync_debug import gpu_sync_allowed


class AdapterExtension:
    """What vLLM's worker can do besides; called by name, on the thread that steps."""

    model_runner: Any

    def hold_adapter(self, adapter_id: int, path: str) -> None:
        """Takes an adapter from a local folder into host memory. Known ids are left alone.

        Raises:
            Exception: It cannot be used with this model; nothing has changed.
        """
        lora_manager = self.model_runner.lora_manager
        adapters: LoRAModelManager = lora_manager._adapter_manager
        if adapter_id in adapters._registered_adapters:
            return
        assert len(adapters) < adapters.capacity, "the caller makes room first"
        lora = lora_manager._load_adapter(LoRARequest(str(adapter_id), adapter_id, path))
        _check_sizes(adapters, lora)
        adapters.add_adapter(lora)

    def activate_adapter(self, adapter_id: int) -> None:
        """Copies an adapter that is held to a slot, in the place of the longest unused one."""
        with gpu_sync_allowed():
            self.model_runner.lora_manager._adapter_manager.activate_adapter(adapter_id)

    def drop_adapter(self, adapter_id: int) -> bool:
        """Forgets an adapter, in its slot and in host memory; says whether it was there."""
        return bool(self.model_runner.lora_manager.remove_adapter(adapter_id))


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
