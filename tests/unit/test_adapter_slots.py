"""What a scheduler hears about slots before it starts requests, or lets others yield to them."""

from types import SimpleNamespace
from typing import Any, cast

from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest
from vllm.v1.request import Request

from deployments.adapter_slots import SlotTurns


def make_slots(max_loras: int | None) -> SlotTurns:
    lora = None if max_loras is None else SimpleNamespace(max_loras=max_loras)
    return SlotTurns(cast("VllmConfig", SimpleNamespace(lora_config=lora)))


def make_requests(*adapters: int) -> list[Request]:
    """Requests of these adapters; 0 is the base model."""
    found: list[Any] = [
        SimpleNamespace(lora_request=LoRARequest(str(a), a, "/held") if a else None)
        for a in adapters
    ]
    return cast("list[Request]", found)


def test_request_without_a_slot_may_not_start_and_is_claimed_for() -> None:
    slots = make_slots(2)
    base, first, second, third = make_requests(0, 1, 2, 3)
    slots.plan([first, first, second], [third, second, base])
    assert not slots.may_start(third)
    assert slots.may_start(first)
    assert slots.may_start(base)
    # The third one's claim closes the adapter with the fewest requests.
    assert slots.is_closed(second)
    assert not slots.may_start(second)
    assert not slots.is_closed(third)
    slots.plan([first], [third])
    assert slots.may_start(third)


def test_model_without_adapters_is_left_alone() -> None:
    slots = make_slots(None)
    [base] = make_requests(0)
    slots.plan([base], [base])
    assert slots.may_start(base)
    assert not slots.is_closed(base)
