"""Decides how many adapters an engine has room for, and says what they take.

Inputs: a model's settings of adapters, the sizes of its linear layers, memory.

The rule:
  - A slot takes what an adapter of the greatest rank on every linear layer does.
  - Slots: what the settings say; else one a running request, but no more than a tenth of the
    device's memory holds, and at least 4. Where sizes or memory are not known, at most 16.
  - In memory: what the settings say; else 4 a slot, no more than a tenth of the machine's memory
    holds. In any case two more than slots: one more may be in flight, and the next has to come
    while all of these are in use.

Invariants (each a property test of that name):

1. slots_fit: chosen slots take at most a tenth of the device, or are the least there may be.
2. memory_holds_the_slots: at least two more adapters are in memory than have slots.
3. settings_win: a number in the settings is what counts.
"""

from dataclasses import dataclass

from serve_app.config_lora import LoraSettings
from serve_app.policy.adapter_shapes import ModelShape

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHARE = 0.1
_LEAST_SLOTS = 4
_SLOTS_UNKNOWN = 16
_HELD_PER_SLOT = 4
_HELD_BESIDE = 2


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """How many adapters an engine holds.

    Attributes:
        slots: On the device, one batch's.
        in_memory: In the machine's memory.
        slot_bytes: What each of either takes at most; None is not known.
    """

    slots: int
    in_memory: int
    slot_bytes: int | None

    def describe(self) -> str:
        """Says what they take, for people."""
        if self.slot_bytes is None:
            return (
                f"{self.slots} adapters in a batch, {self.in_memory} in memory, of unknown size, "
                "as the model's config.json is not on this machine"
            )
        return (
            f"{self.slots} adapters in a batch take {_show(self.slots * self.slot_bytes)}, "
            f"{self.in_memory} in memory up to {_show(self.in_memory * self.slot_bytes)}"
        )

    def describe_each(self) -> str:
        """Says what one takes, where the memory of the machine decides how many there are."""
        size = "" if self.slot_bytes is None else f"{_show(self.slot_bytes)} each; "
        return f"{size}how many is decided when an engine starts"


def count_bytes(shape: ModelShape, rank: int) -> int:
    """Returns what an adapter of this rank on every linear layer takes."""
    features = sum(n_in + n_out for n_in, n_out in shape.modules.values())
    return shape.n_layers * features * rank * _DTYPE_BYTES[shape.dtype]


def plan_room(
    settings: LoraSettings,
    shape: ModelShape | None,
    max_num_seqs: int,
    device_bytes: int | None,
    host_bytes: int | None,
) -> AdapterRoom:
    """Returns how many adapters one engine holds.

    Args:
        settings: The model's.
        shape: Its linear layers; None is not known.
        max_num_seqs: Requests in one batch.
        device_bytes: Memory of the device that computes, of all its parts; None is not known.
        host_bytes: Memory of the machine that one engine may count on; None is not known.
    """
    slot_bytes = None if shape is None else count_bytes(shape, settings.max_rank)
    slots = settings.slots or min(
        max_num_seqs, max(_LEAST_SLOTS, _count_fitting(device_bytes, slot_bytes, _SLOTS_UNKNOWN))
    )
    held = _HELD_PER_SLOT * slots
    in_memory = settings.in_memory or min(held, _count_fitting(host_bytes, slot_bytes, held))
    return AdapterRoom(slots, max(slots + _HELD_BESIDE, in_memory), slot_bytes)


def _count_fitting(memory_bytes: int | None, slot_bytes: int | None, otherwise: int) -> int:
    if memory_bytes is None or slot_bytes is None:
        return otherwise
    return int(memory_bytes * _SHARE) // slot_bytes


def _show(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
