"""Invariants of `serve_app.policy.adapter_memory`."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.config_lora import LoraSettings
from serve_app.policy.adapter_memory import count_bytes, plan_room
from serve_app.policy.adapter_shapes import ModelShape, shape_of

_LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
}
_SHAPE = shape_of(_LLAMA_8B, "bfloat16")
_SETTINGS = st.builds(
    LoraSettings,
    max_rank=st.sampled_from([8, 16, 64, 256]),
    slots=st.none() | st.integers(1, 512),
    in_memory=st.none() | st.integers(1, 2000),
)
_BYTES = st.none() | st.integers(1 << 28, 1 << 41)
_SHAPES = st.sampled_from([None, _SHAPE])


def test_count_is_that_of_a_known_adapter() -> None:
    # Rank 16 on all linear layers of Llama 3.1 8B: 41.9 million parameters, as PEFT prints them.
    assert _SHAPE is not None
    assert count_bytes(_SHAPE, 16) == 41_943_040 * 2


@given(_SETTINGS, _SHAPES, st.integers(1, 512), _BYTES, _BYTES)
def test_slots_fit(
    settings: LoraSettings,
    shape: ModelShape | None,
    max_num_seqs: int,
    device: int | None,
    host: int | None,
) -> None:
    room = plan_room(settings, shape, max_num_seqs, device, host)
    if settings.slots is None:
        assert 1 <= room.slots <= max_num_seqs
        if device is not None and room.slot_bytes is not None:
            assert room.slots * room.slot_bytes <= device / 10 or room.slots <= 4


@given(_SETTINGS, _SHAPES, st.integers(1, 512), _BYTES, _BYTES)
def test_memory_holds_the_slots(
    settings: LoraSettings,
    shape: ModelShape | None,
    max_num_seqs: int,
    device: int | None,
    host: int | None,
) -> None:
    room = plan_room(settings, shape, max_num_seqs, device, host)
    assert room.in_memory >= room.slots + 2


@given(_SETTINGS, _SHAPES, st.integers(1, 512), _BYTES, _BYTES)
def test_settings_win(
    settings: LoraSettings,
    shape: ModelShape | None,
    max_num_seqs: int,
    device: int | None,
    host: int | None,
) -> None:
    room = plan_room(settings, shape, max_num_seqs, device, host)
    assert settings.slots is None or room.slots == settings.slots
    assert settings.in_memory is None or room.in_memory == max(room.slots + 2, settings.in_memory)
