"""Decides on which engine a request runs.

Inputs: a frozen view of each engine of the model. Time and chance play no part.

Rule: among the engines that are ready and have room, the one with the smallest share of its room
in use; ties go to the smaller engine id. None has room: the request waits, unless it is one that
may go beyond (`express`), for whom each engine has some more room.

Invariants (each a property test of that name):

1. never_beyond_room: an engine that is full or not ready is never chosen.
2. work_conserving: if any ready engine has room, one is chosen.
3. least_loaded: no engine with room has a smaller share of its room in use than the chosen one.
4. beyond_is_bounded: no engine is ever handed more than its room and a part of that.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.messages import EngineId

_BEYOND = 0.125
"""Part of an engine's room that it may be handed beyond it. More would only be preempted again."""


@dataclass(frozen=True)
class EngineView:
    """An engine as the router sees it when it chooses."""

    engine_id: EngineId
    is_ready: bool
    in_flight: int
    """Requests handed to it and not ended."""
    room: int
    """Requests it may have in flight."""

    @property
    def room_beyond(self) -> int:
        """Requests it may have in flight when some of them are to take others' places."""
        return self.room + max(1, int(self.room * _BEYOND))


def choose_engine(engines: Iterable[EngineView]) -> EngineId | None:
    """Returns the engine for the next request, or None when it has to wait."""
    candidates = [e for e in engines if e.is_ready and e.in_flight < e.room]
    return min(candidates, key=_order_of).engine_id if candidates else None


def rank_beyond(engines: Iterable[EngineView]) -> list[EngineId]:
    """Returns the engines that take a request beyond their room, the best first."""
    candidates = [e for e in engines if e.is_ready and e.in_flight < e.room_beyond]
    return [engine.engine_id for engine in sorted(candidates, key=_order_of)]


def _order_of(engine: EngineView) -> tuple[float, EngineId]:
    return engine.in_flight / engine.room, engine.engine_id
