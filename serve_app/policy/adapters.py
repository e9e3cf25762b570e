"""Decides on which engine a request with an adapter runs, or where its adapter is to be prepared.

Inputs: a frozen view of each engine of the model. Time and chance play no part.

The rule:
  - An engine may take it if it is ready, has room, and has a slot for its adapter: no more
    different adapters are in flight there than slots and one. That one claims a slot inside the
    engine (`adapter_slots`), so that no adapter waits here for ever behind busy ones.
  - Of these, only engines with at most a quarter more load than the average count, if any are.
    So a hot adapter spreads over as many engines as its rate needs.
  - Of these, the one that has the adapter nearest: in flight, in memory, on disk. Among those that
    have it in flight or in memory, the one with most of the prompt cached, then the least loaded.
    Where nobody has, its home: the engines' order by a hash of engine and adapter. So the cold tail
    lies in one memory each, and stays there when engines come and go.

Invariants (each a property test of that name):

1. never_beyond_room: an engine that is full or not ready is never chosen.
2. slots_are_kept: no engine gets one more adapter when as many as its slots and one are in flight.
3. work_conserving: if any engine may take the request, one is chosen.
4. load_is_bounded: the chosen engine is within the bound, or no engine that may take it is.
5. nearest_first: no engine within the bound has the adapter nearer than the chosen one.
6. homes_stay: an engine that comes or goes moves no adapter between the others.

Source: Mirrokni, Thorup and Zadimoghaddam, *Consistent Hashing with Bounded Loads*, SODA 2018;
Sheng et al., *S-LoRA*, MLSys 2024, on clustering by adapter; homes are by rendezvous hashing
(Thaler and Ravishankar, 1998).
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import blake2b

from serve_app.messages import EngineId
from serve_app.policy.routing import within_bound

_CLAIMING = 1
"""Adapters in flight on an engine beyond its slots."""


class Nearness(IntEnum):
    """How near an engine has an adapter; less is nearer."""

    RUNNING = 0
    IN_MEMORY = 1
    ON_DISK = 2
    AWAY = 3


@dataclass(frozen=True, slots=True)
class AdapterEngine:
    """An engine as the router sees it when it chooses.

    Attributes:
        engine_id: Which.
        is_ready: Whether it takes requests.
        in_flight: Requests handed to it and not ended.
        room: Requests it may have in flight.
        slots: Different adapters that its batch may have.
        running: Adapters of the requests in flight.
        in_memory: Adapters that it said it has in memory, or was asked to prepare.
        on_disk: Adapters that its node has on disk.
        cached_tokens: Tokens of the request's prompt that it is believed to have cached.
    """

    engine_id: EngineId
    is_ready: bool
    in_flight: int
    room: int
    slots: int
    running: Set[int] = field(default_factory=frozenset)
    in_memory: Set[int] = field(default_factory=frozenset)
    on_disk: Set[int] = field(default_factory=frozenset)
    cached_tokens: int = 0

    @property
    def load(self) -> float:
        """Share of its room in use."""
        return self.in_flight / self.room

    def nearness(self, adapter: int) -> Nearness:
        """How near it has an adapter."""
        if adapter in self.running:
            return Nearness.RUNNING
        if adapter in self.in_memory:
            return Nearness.IN_MEMORY
        return Nearness.ON_DISK if adapter in self.on_disk else Nearness.AWAY

    def may_take(self, adapter: int | None) -> bool:
        """Whether it has room, and a slot or the right to claim one."""
        if not self.is_ready or self.in_flight >= self.room:
            return False
        if adapter is None or adapter in self.running:
            return True
        return self.slots > 0 and len(self.running) < self.slots + _CLAIMING


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """Where a request goes, and why.

    Attributes:
        engine_id: Which engine.
        nearness: How near that engine has the adapter; RUNNING for the base model.
        reason: For the log.
    """

    engine_id: EngineId
    nearness: Nearness
    reason: str
    cached_tokens: int = 0
    """As the engine's."""


def choose_place(engines: Sequence[AdapterEngine], adapter: int | None) -> AdapterPlace | None:
    """Returns where a request runs; None when it has to wait.

    Args:
        engines: All of the model's.
        adapter: What it needs; None is the base model.
    """
    able = [engine for engine in engines if engine.may_take(adapter)]
    if not able:
        return None
    within = within_bound(engines, able)
    if adapter is None:
        chosen = min(within, key=_order_of)
        return AdapterPlace(
            chosen.engine_id, Nearness.RUNNING, "least loaded", chosen.cached_tokens
        )
    nearest = min(engine.nearness(adapter) for engine in within)
    have = [engine for engine in within if engine.nearness(adapter) == nearest]
    if nearest >= Nearness.ON_DISK:
        return AdapterPlace(_choose_home(have, adapter), nearest, "not in a memory: its home")
    chosen = min(have, key=_order_of)
    words = nearest.name.lower().replace("_", " ")
    reason = f"{words} there, least loaded of {len(have)}"
    return AdapterPlace(chosen.engine_id, nearest, reason, chosen.cached_tokens)


def choose_preparation(engines: Sequence[AdapterEngine], adapter: int) -> EngineId | None:
    """Returns where to load an adapter whose request waits; None when it is near or nobody can.

    Called when a request joins the queue, so that by its turn only a copy to a slot is left.
    """
    able = [engine for engine in engines if engine.is_ready and engine.slots > 0]
    if not able or any(e.nearness(adapter) <= Nearness.IN_MEMORY for e in able):
        return None
    return _choose_home(within_bound(engines, able), adapter)


def _order_of(engine: AdapterEngine) -> tuple[int, float, EngineId]:
    return -engine.cached_tokens, engine.load, engine.engine_id


def _choose_home(engines: Sequence[AdapterEngine], adapter: int) -> EngineId:
    return max((engine.engine_id for engine in engines), key=lambda e: _score(e, adapter))


def _score(engine_id: EngineId, adapter: int) -> tuple[bytes, EngineId]:
    return blake2b(f"{engine_id}\0{adapter}".encode(), digest_size=8).digest(), engine_id
