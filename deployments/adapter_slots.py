"""Gives the adapter whose turn it is a slot of the batch, inside vLLM's scheduler.

vLLM (0.32) passes over a waiting request whose adapter would be one too many, and does not remember
it: with two slots and two busy adapters a third one's request is never served. Which adapters make
room is `serve_app.policy.adapter_slots`'s decision; here their requests are kept from starting.
"""

from collections import Counter
from collections.abc import Iterable

from vllm.config import VllmConfig
from vllm.v1.request import Request

from serve_app.policy.adapter_slots import AdapterSlots


class SlotTurns:
    """What a scheduler asks before it starts a request. Does nothing without adapters."""

    def __init__(self, config: VllmConfig) -> None:
        lora = config.lora_config
        self._slots = None if lora is None else AdapterSlots(lora.max_loras)
        self._closed: set[int] = set()
        self._running: set[int] = set()
        self._n_slots = 0 if lora is None else int(lora.max_loras)

    def plan(self, running: Iterable[Request], waiting: Iterable[Request]) -> None:
        """Decides for one step. `waiting` is in the order of turns."""
        if self._slots is not None:
            counts = Counter(a for request in running if (a := _adapter_of(request)) is not None)
            wanted = (a for request in waiting if (a := _adapter_of(request)) is not None)
            self._closed = self._slots.plan(counts, wanted)
            self._running = set(counts)

    def may_start(self, request: Request) -> bool:
        """Whether there is a slot for a request's adapter when the step is planned."""
        adapter = _adapter_of(request)
        if adapter is None:
            return True
        has_slot = adapter in self._running or len(self._running) < self._n_slots
        return has_slot and adapter not in self._closed

    def is_closed(self, request: Request) -> bool:
        """Whether a request must not start in this step."""
        return bool(self._closed) and _adapter_of(request) in self._closed


def _adapter_of(request: Request) -> int | None:
    lora = request.lora_request
    return None if lora is None else int(lora.lora_int_id)
