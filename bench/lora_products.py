"""What the adapters of one decode step take on a CPU: while they stay, and as new ones come.

    python -m bench.lora_products

Layers of SmolLM2-135M's sizes in bfloat16, 16 rows with an adapter each, of ranks 8 to 64 on all
modules. No engine and no model: only the products and what they copy, in time of the wall.
"""

import argparse
import random
import sys
import time

import torch
from torch import Tensor
from vllm.lora.layers import LoRAMapping

from bench.report import describe_run, print_table
from deployments.cpu_lora_ops import CpuPunica

_LAYERS = 30
_WIDTH, _KEYS, _HIDDEN = 576, 192, 1536
_MODULES = (
    (_WIDTH, (_WIDTH, _KEYS, _KEYS)),
    (_WIDTH, (_WIDTH,)),
    (_WIDTH, (_HIDDEN, _HIDDEN)),
    (_HIDDEN, (_WIDTH,)),
)
"""Inputs and outputs of q, k and v; o; gate and up; down."""
_SLOTS = 16
_RANKS = (8, 16, 32, 64)
_DTYPE = torch.bfloat16
_STEPS = 48


class Layers:
    """The stacks of all slots, and the products of a step over them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._punica = CpuPunica(_SLOTS, _SLOTS, "cpu")
        ids = tuple(range(1, _SLOTS + 1))
        self._punica.update_metadata(LoRAMapping(ids, ids), list(ids), _SLOTS + 1, 100)
        self._modules = [_make_module(*sizes) for _ in range(_LAYERS) for sizes in _MODULES]
        for slot in range(_SLOTS):
            self.replace(slot)

    def replace(self, slot: int) -> None:
        """Another adapter comes to a slot."""
        rank = self._rng.choice(_RANKS)
        stacks = (a for _, a, _, _ in self._modules for a in a)
        self._punica.learn(slot, {a.data_ptr(): rank for a in stacks})

    def step(self) -> float:
        """Returns the seconds that it took."""
        began_s = time.perf_counter()
        for x, a, b, sizes in self._modules:
            y = torch.zeros(_SLOTS, sum(sizes), dtype=_DTYPE)
            self._punica.add_lora_linear(y, x, a, b, 1.0, sizes)
        return time.perf_counter() - began_s


_Module = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], tuple[int, ...]]


def _make_module(inputs: int, sizes: tuple[int, ...]) -> _Module:
    rank = max(_RANKS)
    a = tuple(torch.randn(_SLOTS, 1, rank, inputs).to(_DTYPE) for _ in sizes)
    b = tuple(torch.randn(_SLOTS, 1, size, rank).to(_DTYPE) for size in sizes)
    return torch.randn(_SLOTS, inputs).to(_DTYPE), a, b, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="compute threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers = Layers(random.Random(0))
    layers.step()
    stay = sorted(layers.step() for _ in range(_STEPS))
    change = []
    for number in range(_STEPS):
        layers.replace(number % _SLOTS)
        change.append(layers.step())
    print(describe_run(f"python -m bench.lora_products {' '.join(sys.argv[1:])}".strip()))
    rows = [
        [name, f"{1000 * each[_STEPS // 2]:.0f}", f"{1000 * sum(each) / _STEPS:.0f}"]
        for name, each in (("stay", stay), ("one is new in each step", sorted(change)))
    ]
    print_table("Products of one step, ms", ["adapters", "p50", "mean"], rows)


if __name__ == "__main__":
    main()
