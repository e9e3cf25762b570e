"""Adapters of the echo core: what the real ones cost, without weights."""

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from vllm.v1.engine import EngineCoreRequest

from serve_app.policy.adapter_slots import AdapterSlots


@dataclass(frozen=True)
class AdapterPace:
    """What adapters take, in seconds. Names and meanings are those of the settings."""

    slots: int = 0
    capacity: int = 0
    load_s: float = 0.0
    activate_s: float = 0.0


class EchoAdapters:
    """The tiers of an engine that steps with a batch of limited slots."""

    def __init__(self, pace: AdapterPace) -> None:
        self.pace = pace
        self._turns = AdapterSlots(pace.slots)
        self._closed: set[int] = set()
        self._running: Counter[int] = Counter()
        self._held: set[int] = set()
        self._in_slots: OrderedDict[int, None] = OrderedDict()
        """What was copied to a slot, the longest unused first."""

    @property
    def active(self) -> set[int]:
        """Adapters of the requests that run."""
        return set(self._running)

    def hold(self, adapter_id: int) -> None:
        """Loads an adapter; steps wait, as the real one's do."""
        assert len(self._held) < self.pace.capacity, "the caller makes room first"
        time.sleep(self.pace.load_s)
        self._held.add(adapter_id)

    def activate(self, adapter_id: int) -> None:
        """Gives an adapter a slot, if no request needs them all."""
        if len(self._running) < self.pace.slots:
            time.sleep(self._put_in_slot(adapter_id))

    def drop(self, adapter_id: int) -> None:
        """Forgets an adapter."""
        self._held.discard(adapter_id)
        self._in_slots.pop(adapter_id, None)

    def plan(self, waiting: Iterable[EngineCoreRequest]) -> None:
        """Decides for one step which adapters take no more requests."""
        wanted = (a for request in waiting if (a := adapter_of(request)) is not None)
        self._closed = self._turns.plan(self._running, wanted)

    def may_start(self, adapter_id: int | None) -> bool:
        """Whether a request can join the batch."""
        if adapter_id is None:
            return True
        has_slot = adapter_id in self._running or len(self._running) < self.pace.slots
        return has_slot and adapter_id not in self._closed

    def start(self, adapter_id: int | None) -> float:
        """Counts a request that starts; returns the seconds that its adapter adds to the step."""
        if adapter_id is None:
            return 0.0
        assert adapter_id in self._held, "a request comes when its adapter is held"
        self._running[adapter_id] += 1
        return self._put_in_slot(adapter_id)

    def _put_in_slot(self, adapter_id: int) -> float:
        is_new = adapter_id not in self._in_slots
        self._in_slots[adapter_id] = None
        self._in_slots.move_to_end(adapter_id)
        while len(self._in_slots) > self.pace.slots:
            used = {*self._running, adapter_id}
            unused = next(a for a in self._in_slots if a not in used)
            del self._in_slots[unused]
        return self.pace.activate_s if is_new else 0.0

    def end(self, adapter_id: int | None) -> None:
        """Counts a request that has ended."""
        if adapter_id is not None:
            self._running[adapter_id] -= 1
            self._running += Counter()  # Without those that are none.


def adapter_of(request: EngineCoreRequest) -> int | None:
    """A request's adapter, or None."""
    return None if request.lora_request is None else int(request.lora_request.lora_int_id)
