"""Decides on which engine a request with an adapter runs, and where its adapter is loaded.

Inputs: a frozen view of each engine of the model. Time and chance play no part.

The rule, of where it runs:
  - An engine may take it if it is ready, has room, and has a slot for its adapter: no more
    different adapters are in flight there than slots and one. That one claims a slot inside the
    engine (`adapter_slots`). Who finds none claims one here (`slot_claims`), and what is closed
    for that is handed over no more. So no adapter waits for ever behind busy ones.
  - It runs where its adapter is: of the engines that have it in memory and may take it, those with
    at most a quarter more load than the average, if any are; of these one that runs it already,
    the one with most of the prompt cached, the least loaded. Has none that has it a place, the
    request waits for one of them: a place elsewhere is for those whose adapters are there.

The rule, of where it is loaded:
  - Is it nowhere, at its home: the engines' order by a hash of engine and adapter, among those
    within the bound. So the cold tail lies in one memory each, and stays there when engines come
    and go.
  - Has every engine that holds it half again the average load, or more, it gets one more, at its
    home among the others within the bound that are loading nothing. So a hot adapter spreads over
    as many engines as its rate needs, and loads that only even out chance stay few.
  - While it is coming somewhere, nowhere else.
  - An engine loads no more adapters ahead of their requests than its batch has slots, but one for
    each tenant that has none ahead there, and none for which memory has no room. So nothing is
    loaded to be pushed out before its request comes.

Invariants (each a property test of that name):

1. never_beyond_room: an engine that is full or not ready is never chosen.
2. slots_are_kept: no engine gets one more adapter when as many as its slots and one are in flight,
   nor one that is closed.
3. work_conserving: if any engine that has the adapter may take the request, one is chosen; has none
   the adapter, it comes or is to be loaded, unless no engine may load.
4. load_is_bounded: the chosen engine is within the bound, or none that has the adapter and may take
   the request is.
5. nearest_first: no engine within the bound has the adapter nearer than the chosen one.
6. homes_stay: an engine that comes or goes moves no adapter between the others.
7. copies_are_for_the_hot: an adapter that some engine has is loaded elsewhere only if all that have
   it have more than their part, and the other one does not.
8. ahead_is_bounded: adapters in use and ahead are never more than memory takes, and a tenant's
   first is let in whatever others have ahead, as long as there is room.

Source: Mirrokni, Thorup and Zadimoghaddam, *Consistent Hashing with Bounded Loads*, SODA 2018;
Sheng et al., *S-LoRA*, MLSys 2024, on clustering by adapter; homes are by rendezvous hashing
(Thaler and Ravishankar, 1998).
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import blake2b

from serve_app.messages import EngineId
from serve_app.policy.routing import SLACK, find_within, within_bound

_CLAIMING = 1
"""Adapters in flight on an engine beyond its slots."""
_HOT = 1.5
"""Load beside the average from which on an engine shares an adapter with another one. More than
routing allows: a load is dearer than an uneven moment."""


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
        in_memory: Adapters that it said it has in memory.
        coming: Adapters that are on their way there.
        on_disk: Adapters that its node has on disk.
        cached_tokens: Tokens of the request's prompt that it is believed to have cached.
        may_load: Whether it may load one ahead of this request (`may_load_ahead`).
        closed: Adapters whose slots others have claimed.
    """

    engine_id: EngineId
    is_ready: bool
    in_flight: int
    room: int
    slots: int
    running: Set[int] = field(default_factory=frozenset)
    in_memory: Set[int] = field(default_factory=frozenset)
    coming: Set[int] = field(default_factory=frozenset)
    on_disk: Set[int] = field(default_factory=frozenset)
    cached_tokens: int = 0
    may_load: bool = True
    closed: Set[int] = field(default_factory=frozenset)

    @property
    def load(self) -> float:
        """Share of its room in use."""
        return self.in_flight / self.room

    def has(self, adapter: int) -> bool:
        """Whether it has an adapter where a request can use it."""
        return adapter in self.running or adapter in self.in_memory

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
        return adapter is None or self.has_slot(adapter)

    def has_slot(self, adapter: int) -> bool:
        """Whether its batch may have this adapter."""
        if adapter in self.running:
            return adapter not in self.closed
        return self.slots > 0 and len(self.running) < self.slots + _CLAIMING

    def lacks_slot(self, adapter: int) -> bool:
        """Whether a slot is all that keeps it from taking a request with an adapter it has."""
        has_place = self.is_ready and self.in_flight < self.room
        return (
            has_place
            and adapter in self.in_memory
            and adapter not in self.running
            and (not self.has_slot(adapter))
        )


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
    able = [e for e in engines if e.may_take(adapter) and (adapter is None or e.has(adapter))]
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
    chosen = min(have, key=_order_of)
    words = nearest.name.lower().replace("_", " ")
    reason = f"{words} there, least loaded of {len(have)}"
    return AdapterPlace(chosen.engine_id, nearest, reason, chosen.cached_tokens)


def choose_preparation(engines: Sequence[AdapterEngine], adapter: int) -> EngineId | None:
    """Returns where to load an adapter that a request waits for, or more than one engine needs.

    Called when a request joins the queue and when it may be its turn, so that by then only a copy
    to a slot is left. None when it is near, is coming, or nobody can load it now.
    """
    able = [engine for engine in engines if engine.is_ready and engine.slots > 0]
    if not able or any(adapter in engine.coming for engine in able):
        return None
    have = [engine for engine in able if engine.has(adapter)]
    may: Sequence[AdapterEngine] = [engine for engine in able if engine.may_load]
    if have:
        if find_within(engines, have, _HOT):
            return None
        free = [e for e in may if not e.coming and not e.has(adapter)]
        may = find_within(engines, free, SLACK)
    return _choose_home(within_bound(engines, may), adapter) if may else None


def may_load_ahead(n_ahead: int, n_own: int, n_in_use: int, slots: int, capacity: int) -> bool:
    """Returns whether an engine may load one more adapter before a request for it is there.

    Args:
        n_ahead: Adapters that it was asked to load and no request has come for.
        n_own: How many of these are for this tenant's requests.
        n_in_use: Adapters of the requests in flight there.
        slots: Different adapters that its batch may have.
        capacity: Adapters that its memory holds.
    """
    return n_ahead + n_in_use < capacity and (n_ahead < slots or not n_own)


def _order_of(engine: AdapterEngine) -> tuple[int, float, EngineId]:
    return -engine.cached_tokens, engine.load, engine.engine_id


def _choose_home(engines: Sequence[AdapterEngine], adapter: int) -> EngineId:
    return max((engine.engine_id for engine in engines), key=lambda e: _score(e, adapter))


def _score(engine_id: EngineId, adapter: int) -> tuple[bytes, EngineId]:
    return blake2b(f"{engine_id}\0{adapter}".encode(), digest_size=8).digest(), engine_id
