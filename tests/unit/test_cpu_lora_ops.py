"""The CPU's LoRA products against plain arithmetic, and vLLM's own where they mix tenants."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from deployments.cpu_lora_ops import CpuPunica, _expand, _shrink, _watch_slots

_INPUTS = 12
_SIZES = (10, 6)
"""Outputs of two slices of a layer."""
_MAX_RANK = 8
_SLOTS = 5


class Layer:
    """Stacks of one layer, as vLLM keeps them, and the plain product."""

    def __init__(self, ranks: Sequence[Sequence[int]], seed: int = 0) -> None:
        """Takes the rank of each slot in each slice."""
        generator = torch.Generator().manual_seed(seed)
        self.a = tuple(torch.zeros(_SLOTS, 1, _MAX_RANK, _INPUTS) for _ in _SIZES)
        self.b = tuple(torch.zeros(_SLOTS, 1, size, _MAX_RANK) for size in _SIZES)
        for i, size in enumerate(_SIZES):
            for slot, rank in enumerate(ranks[i]):
                self.a[i][slot, 0, :rank] = torch.randn(rank, _INPUTS, generator=generator)
                self.b[i][slot, 0, :, :rank] = torch.randn(size, rank, generator=generator)

    def replace(self, slot: int, other: "Layer") -> None:
        """Puts what another layer has in a slot into this one's."""
        for own, new in zip(self.a + self.b, other.a + other.b, strict=True):
            own[slot] = new[slot]

    def product(self, x: Tensor, slot: int) -> Tensor:
        """What one adapter adds to one row."""
        parts = [self.b[i][slot, 0] @ (self.a[i][slot, 0] @ x) for i in range(len(_SIZES))]
        return torch.cat(parts)


def make_punica(wrapper: type[PunicaWrapperCPU], slot_of_rows: Sequence[int]) -> PunicaWrapperCPU:
    """A wrapper that has been told a step's rows. Slot s holds the adapter s + 1."""
    punica = wrapper(4096, 256, "cpu")
    tell(punica, slot_of_rows)
    return punica


def tell(punica: PunicaWrapperCPU, slot_of_rows: Sequence[int]) -> None:
    ids = tuple(slot + 1 for slot in slot_of_rows)
    mapping = LoRAMapping(ids, ids, is_prefill=True)
    punica.update_metadata(mapping, [s + 1 for s in range(_SLOTS)], _SLOTS + 1, 100)


def run_layer(punica: PunicaWrapperCPU, layer: Layer, x: Tensor) -> Tensor:
    """What the wrapper adds to ones."""
    y = torch.ones(x.shape[0], sum(_SIZES))
    punica.add_lora_linear(y, x, layer.a, layer.b, 1.0, _SIZES)
    return y


def check_rows(layer: Layer, slot_of_rows: Sequence[int], x: Tensor, y: Tensor) -> None:
    for i, slot in enumerate(slot_of_rows):
        if slot < 0:
            assert torch.equal(y[i], torch.ones(sum(_SIZES)))
        else:
            torch.testing.assert_close(y[i], 1 + layer.product(x[i], slot), atol=1e-4, rtol=1e-4)


def test_stock_gives_rows_without_adapter_another_adapter() -> None:
    # When this fails, vLLM has mended it and our part may go.
    layer = Layer([[4] * _SLOTS] * 2)
    x = torch.randn(3, _INPUTS)
    y = run_layer(make_punica(PunicaWrapperCPU, [0, -1, 1]), layer, x)
    leaked = 1 + layer.product(x[1], _SLOTS - 1)
    torch.testing.assert_close(y[1], leaked, atol=1e-4, rtol=1e-4)


_RANKS = st.lists(
    st.lists(st.integers(0, _MAX_RANK), min_size=_SLOTS, max_size=_SLOTS), min_size=2, max_size=2
)
_SLOT = st.integers(0, _SLOTS - 1)
_ROWS = st.lists(st.integers(-1, _SLOTS - 1), min_size=1, max_size=40)


@settings(deadline=None)
@given(ranks=_RANKS, rows=_ROWS, times=st.sampled_from([1, 60]))
def test_every_row_gets_its_own_adapter_and_no_other(
    ranks: list[list[int]], rows: list[int], times: int
) -> None:
    layer = Layer(ranks)
    rows = [row for row in rows for _ in range(times)]  # Many rows are grouped, few are packed.
    x = torch.randn(len(rows), _INPUTS, generator=torch.Generator().manual_seed(1))
    y = run_layer(make_punica(CpuPunica, rows), layer, x)
    check_rows(layer, rows, x, y)


def test_weights_that_overflow_spoil_nobody_elses_rows() -> None:
    layer = Layer([[4] * _SLOTS] * 2)
    for a in layer.a:
        a[1] = torch.finfo(a.dtype).max
    rows = [0, 1, 2, -1]
    x = torch.randn(len(rows), _INPUTS)
    y = run_layer(make_punica(CpuPunica, rows), layer, x)
    keep = [0, 2, 3]
    check_rows(layer, [rows[i] for i in keep], x[keep], y[keep])


@settings(deadline=None)
@given(ranks=_RANKS, steps=st.lists(_ROWS, min_size=2, max_size=5))
def test_steps_do_not_mix_with_those_before(ranks: list[list[int]], steps: list[list[int]]) -> None:
    layer = Layer(ranks)
    punica = make_punica(CpuPunica, steps[0])
    for rows in steps:
        tell(punica, rows)
        x = torch.randn(len(rows), _INPUTS)
        check_rows(layer, rows, x, run_layer(punica, layer, x))


@settings(deadline=None)
@given(ranks=_RANKS, steps=st.lists(st.tuples(_ROWS, st.none() | _SLOT), min_size=2, max_size=8))
def test_slots_may_change_between_any_steps(
    ranks: list[list[int]], steps: list[tuple[list[int], int | None]]
) -> None:
    layer = Layer(ranks)
    punica = make_punica(CpuPunica, [0])
    for seed, (rows, changed) in enumerate(steps, 1):
        if changed is not None:
            layer.replace(changed, Layer([each[::-1] for each in ranks], seed))
            assert isinstance(punica, CpuPunica)
            punica.learn(changed, {})
        tell(punica, rows)
        x = torch.randn(len(rows), _INPUTS)
        check_rows(layer, rows, x, run_layer(punica, layer, x))


@pytest.mark.parametrize("rows", [[0, 1, -1, 0], [0, 1, -1, 0] * 60], ids=["packed", "grouped"])
def test_adapters_may_have_another_dtype_than_the_model(rows: list[int]) -> None:
    layer = Layer([[_MAX_RANK] * _SLOTS] * 2)
    x = torch.randn(len(rows), _INPUTS, dtype=torch.bfloat16)
    y = torch.ones(len(rows), sum(_SIZES), dtype=torch.bfloat16)
    make_punica(CpuPunica, rows).add_lora_linear(y, x, layer.a, layer.b, 1.0, _SIZES)
    exact = 1 + layer.product(x[0].float(), 0)
    torch.testing.assert_close(y[0].float(), exact, atol=0.2, rtol=0.02)
    assert torch.equal(y[2], torch.ones_like(y[2]))


@settings(deadline=None)
@given(ranks=_RANKS, rows=_ROWS)
def test_logits_get_their_own_adapter_and_no_other(ranks: list[list[int]], rows: list[int]) -> None:
    layer = Layer(ranks)
    punica = make_punica(CpuPunica, rows)
    x = torch.randn(len(rows), _INPUTS, generator=torch.Generator().manual_seed(1))
    y = torch.ones(len(rows), _SIZES[0] - 1)  # The stack may have more words than the logits.
    punica.add_lora_logits(y, x, layer.a[0], layer.b[0], 1.0)
    for i, slot in enumerate(rows):
        added = layer.product(x[i], slot)[: _SIZES[0] - 1] if slot >= 0 else 0.0
        torch.testing.assert_close(y[i], torch.ones_like(y[i]) + added, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [[2, 2, -1], [0, 2, -1, 4]], ids=["grouped", "packed"])
def test_new_adapter_in_a_slot_replaces_the_old(rows: list[int]) -> None:
    before, after = Layer([[3] * _SLOTS] * 2, seed=1), Layer([[5] * _SLOTS, [0] * _SLOTS], seed=2)
    punica = make_punica(CpuPunica, rows)
    x = torch.randn(len(rows), _INPUTS)
    check_rows(before, rows, x, run_layer(punica, before, x))

    # What the adapter has: five rows in the first slice, nothing in the second.
    weights = SimpleNamespace(lora_a=[after.a[0][2, 0, :5], None])
    manager = SimpleNamespace(
        lora_index_to_id=[11, 12, 13, 14, 15],
        punica_wrapper_mapping={"language_model": punica},
        modules={"qkv_proj": SimpleNamespace(lora_a_stacked=before.a)},
        get_adapter=lambda lora_id: lora_id,
        _get_lora_layer_weights=lambda lora, name: weights,
    )

    def activate(manager: SimpleNamespace, lora_id: int) -> bool:
        slot = manager.lora_index_to_id.index(lora_id)
        before.replace(slot, after)
        return True

    assert _watch_slots(manager, activate, 13)
    check_rows(before, rows, x, run_layer(punica, before, x))


def test_single_operations_leave_rows_without_adapter_alone() -> None:
    indices = torch.tensor([0, -1, 1])
    weights = torch.randn(2, 1, 4, _INPUTS)
    shrunk = torch.full((3, 4), 7.0)
    _shrink(lora_ops.bgmv_shrink, torch.randn(3, _INPUTS), weights, shrunk, indices)
    assert torch.equal(shrunk[1], torch.zeros(4))
    assert shrunk[0].abs().sum() > 0

    for adds in (True, False):
        output = torch.full((3, 4), 7.0)
        _expand(lora_ops.bgmv_expand, torch.randn(3, _INPUTS), weights, output, indices, adds)
        assert torch.equal(output[1], torch.full((4,), 7.0))
        assert not torch.equal(output[2], torch.full((4,), 7.0))
