"""vLLM's LoRA products on a CPU, with one fault mended and most of their time saved.

The fault (vLLM 0.32, upstream vllm#48421): rows of a batch without an adapter have the index -1,
and vLLM's CPU operations use it to index the stack of adapters. So a request for the base model
gets whatever adapter lies in the last slot, which may be another tenant's. Kernels for GPUs skip
such rows; here they are skipped too.

The time: vLLM copies each row's adapter out of the stack, at the greatest rank that the engine
allows, for every layer, also those that the adapter leaves alone. Here the adapters of a batch are
multiplied at their own ranks and where they have weights at all. There are two ways, which compute
the same:

  - packed: A's of all adapters side by side, so that a layer is two products. Each row keeps only
    its own adapter's part in between, the rest is masked. Good when many adapters have few rows.
  - grouped: each adapter's rows by themselves. Good for one or two adapters and for long prompts.

`install` puts both in the place of vLLM's; it is for CPUs only. Imports vLLM.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, partialmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

_PACKED_VALUES_PER_SLOT = 1024
"""A batch of so many intermediate values (rows x ranks) an adapter is packed, a greater grouped.

Packing multiplies every row with every adapter; grouping costs tens of microseconds an adapter.
"""
_WASTE = 2
"""A packed layer is at most so many times as wide as the batch needs.

So each value is copied about twice, however often the adapters of a batch change.
"""
_NOBODY = -2
"""Owner of columns whose adapter has left its slot."""


class Batch:
    """Which rows of one step belong to which slot.

    Args:
        indices: Slot of each row, -1 for none.
    """

    def __init__(self, indices: Tensor) -> None:
        self.n_rows = indices.shape[0]
        self.slots: tuple[int, ...] = tuple(s for s in indices.unique().tolist() if s >= 0)
        self._indices = indices
        self._rows: dict[int, slice | Tensor] = {}
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def rows_of(self, slot: int) -> slice | Tensor:
        """Returns the rows of a slot, as a slice where they lie together."""
        if slot not in self._rows:
            rows = (self._indices == slot).nonzero().squeeze(1)
            first, last = int(rows[0]), int(rows[-1])
            together = last - first + 1 == rows.shape[0]
            self._rows[slot] = slice(first, last + 1) if together else rows
        return self._rows[slot]

    def others_of(self, owners: tuple[int, ...]) -> Tensor:
        """Returns where a column is not of a row's slot, of shape [rows, columns]."""
        if owners not in self._masks:
            columns = torch.tensor(owners)
            self._masks[owners] = self._indices[:, None] != columns[None, :]
        return self._masks[owners]


@dataclass
class _Packed:
    """Several slots of one slice of a layer side by side, with room for more.

    Attributes:
        a: Of shape [room, inputs].
        b: Of shape [outputs, room].
        owners: The slot of each column that is in use.
        slots: All of these.
    """

    a: Tensor
    b: Tensor
    owners: tuple[int, ...] = ()
    slots: set[int] = field(default_factory=set)

    @property
    def room(self) -> int:
        """Columns that can be."""
        return int(self.a.shape[0])

    def add(self, slot: int, a: Tensor, b: Tensor) -> None:
        """Puts a slot's weights, [rank, inputs] and [outputs, rank], behind the others."""
        first = len(self.owners)
        self.slots.add(slot)
        self.owners += (slot,) * a.shape[0]
        self.a[first : len(self.owners)] = a
        self.b[:, first : len(self.owners)] = b

    def forget(self, slot: int) -> None:
        """Takes note that a slot holds another adapter now."""
        if slot in self.slots:
            self.slots.remove(slot)
            self.owners = tuple(_NOBODY if owner == slot else owner for owner in self.owners)

    def product(self, x: Tensor, batch: Batch) -> Tensor:
        """Returns what each row's own columns make of it, of shape [rows, outputs]."""
        width = len(self.owners)
        shrunk = linear(x, self.a[:width])
        # Not a product with 0: what overflows in one adapter would be NaN in others' rows.
        shrunk.masked_fill_(batch.others_of(self.owners), 0.0)
        return linear(shrunk, self.b[:, :width])


@dataclass
class _Slice:
    """One slice of a layer, such as q of q, k and v, with its stacks of all slots.

    Attributes:
        a: Of shape [slots, 1, greatest rank, inputs].
        b: Of shape [slots, 1, outputs, greatest rank].
    """

    a: Tensor
    b: Tensor
    ranks: dict[int, int] = field(default_factory=dict)
    """Rows of A in use, by slot, where they are known."""
    _packed: _Packed | None = None

    def rank_of(self, slot: int) -> int:
        """Returns how many rows of A are in use, 0 where the adapter leaves this slice alone."""
        if slot not in self.ranks:
            used = self.a[slot, 0].any(dim=1).nonzero()
            self.ranks[slot] = int(used[-1]) + 1 if used.numel() else 0
        return self.ranks[slot]

    def forget(self, slot: int) -> None:
        """Takes note that another adapter is in a slot now."""
        if self._packed is not None:
            self._packed.forget(slot)

    def pack(self, slots: Sequence[int]) -> _Packed:
        """Returns these slots side by side, and perhaps others that were there before."""
        needed = sum(self.rank_of(slot) for slot in slots)
        packed = self._packed
        missing = slots if packed is None else [s for s in slots if s not in packed.slots]
        width = sum(self.rank_of(slot) for slot in missing)
        if packed is not None:
            width += len(packed.owners)
        if packed is None or width > min(packed.room, _WASTE * needed):
            room = _WASTE * needed
            inputs, outputs = self.a.shape[3], self.b.shape[2]
            packed = _Packed(self.a.new_empty(room, inputs), self.b.new_empty(outputs, room))
            self._packed, missing = packed, slots
        for slot in missing:
            rank = self.rank_of(slot)
            packed.add(slot, self.a[slot, 0, :rank], self.b[slot, 0, :, :rank])
        return packed

    def add_to(self, y: Tensor, x: Tensor, batch: Batch, scale: float) -> None:
        """Adds the adapters' products to `y`, of shape [rows, outputs]."""
        slots = [slot for slot in batch.slots if self.rank_of(slot)]
        if not slots:
            return
        x = x.to(self.a.dtype)  # Adapters may be kept in another one than the model's.
        width = sum(self.rank_of(slot) for slot in slots)
        if len(slots) == 1 or batch.n_rows * width > _PACKED_VALUES_PER_SLOT * len(slots):
            for slot in slots:
                self._add_group(y, x, slot, batch.rows_of(slot), scale)
        else:
            y += _scaled(self.pack(slots).product(x, batch), scale)

    def _add_group(
        self, y: Tensor, x: Tensor, slot: int, rows: slice | Tensor, scale: float
    ) -> None:
        rank = self.rank_of(slot)
        a, b = self.a[slot, 0, :rank], self.b[slot, 0, :, :rank]
        product = _scaled(linear(linear(x[rows], a), b), scale)
        if isinstance(rows, slice):
            y[rows] += product
        else:
            y.index_add_(0, rows, product.to(y.dtype))


def _scaled(product: Tensor, scale: float) -> Tensor:
    return product if scale == 1.0 else product * scale


class CpuPunica(PunicaWrapperCPU):
    """vLLM's seam between its LoRA layers and their products, on a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batch = self._sampled = Batch(torch.empty(0, dtype=torch.long))
        self._slices: dict[int, _Slice] = {}
        """By the address of A's stack, which lives as long as the model."""
        self._ranks: dict[int, dict[int, int]] = {}
        """Of each of these, by slot."""

    def update_metadata(self, mapping: LoRAMapping, *args: Any, **kwargs: Any) -> None:
        """Takes a step's rows."""
        super().update_metadata(mapping, *args, **kwargs)
        self._batch = Batch(self.token_lora_indices)
        self._sampled = Batch(self.sampler_indices)

    def learn(self, slot: int, ranks: Mapping[int, int]) -> None:
        """Takes note that another adapter is in a slot now.

        Args:
            slot: Which.
            ranks: Its rank by the address of A's stack. One that is missing is looked up in A.
        """
        for known in self._ranks.values():
            known.pop(slot, None)
        for address, rank in ranks.items():
            self._ranks.setdefault(address, {})[slot] = rank
        for part in self._slices.values():
            part.forget(slot)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Adds what the adapters make of `x` to `y`, slice by slice."""
        if not self._batch.slots:
            return
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        start = 0
        for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            part = self._slice_of(a, b)
            part.add_to(y[:, start : start + size], x, self._batch, scale)
            start += size

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """Adds what the adapters make of the last layer's output to the logits `y`.

        vLLM does so in every step for the whole vocabulary; few adapters touch it.
        """
        if not self._sampled.slots:
            return
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        n_words = min(y.shape[-1], lora_b_stacked.shape[2])
        part = self._slice_of(lora_a_stacked, lora_b_stacked[:, :, :n_words])
        part.add_to(y[:, :n_words], x, self._sampled, scale)

    def _slice_of(self, a: Tensor, b: Tensor) -> _Slice:
        part = self._slices.get(a.data_ptr())
        if part is None:
            ranks = self._ranks.setdefault(a.data_ptr(), {})
            part = self._slices[a.data_ptr()] = _Slice(a, b, ranks)
        return part


# --- what else of vLLM's operations would mix tenants ------------------------------------------


def _shrink(
    stock: Callable[..., None],
    inputs: Tensor,
    weights: Tensor,
    output: Tensor,
    indices: Tensor,
    scaling: float = 1.0,
) -> None:
    stock(inputs, weights, output, indices, scaling)
    output[indices < 0] = 0


def _expand(
    stock: Callable[..., None],
    inputs: Tensor,
    weights: Tensor,
    output: Tensor,
    indices: Tensor,
    *args: Any,
    **kwargs: Any,
) -> None:
    without = indices < 0
    kept = output[: indices.shape[0]][without].clone()
    stock(inputs, weights, output, indices, *args, **kwargs)
    output[: indices.shape[0]][without] = kept


def _watch_slots(manager: Any, activate: Callable[..., bool], lora_id: int) -> bool:
    is_new = activate(manager, lora_id)
    if is_new:
        note_slot(manager, lora_id)
    return is_new


def note_slot(manager: Any, lora_id: int) -> None:
    """Learns the ranks of an adapter that has come to a slot, in place of another's."""
    slot = manager.lora_index_to_id.index(lora_id)
    ranks = _ranks_of(manager, lora_id)
    for punica in manager.punica_wrapper_mapping.values():
        if isinstance(punica, CpuPunica):
            punica.learn(slot, ranks)


def _ranks_of(manager: Any, lora_id: int) -> dict[int, int]:
    """An adapter's rank in each slice of each layer, by the address of A's stack.

    Known from what was copied: to look for the last row in use would take as long as the copy.
    """
    lora = manager.get_adapter(lora_id)
    ranks = {}
    for name, module in manager.modules.items():
        stacks = getattr(module, "lora_a_stacked", ())
        stacks = stacks if isinstance(stacks, tuple | list) else (stacks,)
        weights = manager._get_lora_layer_weights(lora, name)
        parts = [None] * len(stacks) if weights is None else weights.lora_a
        parts = parts if isinstance(parts, list) else [parts] * len(stacks)
        if len(parts) == len(stacks):
            for stack, part in zip(stacks, parts, strict=True):
                ranks[stack.data_ptr()] = 0 if part is None else int(part.shape[0])
    return ranks


def install() -> None:
    """Replaces vLLM's CPU operations in this process; again changes nothing."""
    if punica_cpu.PunicaWrapperCPU is CpuPunica:
        return
    changed: dict[str, Any] = {
        "bgmv_shrink": partial(_shrink, lora_ops.bgmv_shrink),
        "bgmv_expand": partial(_expand, lora_ops.bgmv_expand),
        "bgmv_expand_slice": partial(_expand, lora_ops.bgmv_expand_slice),
    }
    for module in (lora_ops, punica_cpu):
        for name, function in changed.items():
            setattr(module, name, function)
    activate = LoRAModelManager.activate_adapter
    watched = partialmethod(_watch_slots, activate)
    setattr(LoRAModelManager, "activate_adapter", watched)  # noqa: B010 - mypy knows it as a method
    punica_cpu.PunicaWrapperCPU = CpuPunica  # type: ignore[misc]  # on purpose
