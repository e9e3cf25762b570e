"""Decides on which engine a request runs.

Inputs: a frozen view of each engine of the model. Time and chance play no part.

Rule: among the engines that are ready and have room, the one with the smallest share of its room
in use; ties go to the smaller engine id. None has room: the request waits.

Invariants (each a property test of that name):

1. never_beyond_room: an engine that is full or not ready is never chosen.
2. work_conserving: if any ready engine has room, one is chosen.
3. least_loaded: no engine with room has a smaller share of its room in use than the chosen one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from serve_app.messages import EngineId


@dataclass(frozen=True)
class EngineView:
    """An engine as the router sees it when it chooses."""

    engine_id: EngineId
    is_ready: bool
    in_flight: int
    """Requests handed to it and not ended."""
    room: int
    """Requests it may have in flight."""


def choose_engine(engines: Iterable[EngineView]) -> EngineId | None:
    """Returns the engine for the next request, or None when it has to wait."""
    candidates = [e for e in engines if e.is_ready and e.in_flight < e.room]
    if not candidates:
        return None
    return min(candidates, key=lambda e: (e.in_flight / e.room, e.engine_id)).engine_id
