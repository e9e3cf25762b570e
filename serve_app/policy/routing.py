"""Decides on which engine a request runs.

Inputs: a frozen view of each engine of the model. Time and chance play no part.

Rule: among the engines that are ready and have room, and have at most a quarter more load than the
average, the one that is believed to have most of the prompt cached (`prefixes`). Ties go to the
smallest share of its room in use, then to the smaller engine id. None has room: the request waits,
unless it is one that may go beyond (`express`), for whom each engine has some more room.

Invariants (each a property test of that name):

1. never_beyond_room: an engine that is full or not ready is never chosen.
2. work_conserving: if any ready engine has room, one is chosen.
3. least_loaded: no engine with room that has as much of the prompt has a smaller share of its room
   in use than the chosen one.
4. load_is_bounded: the chosen engine is within the bound, or none with room is.
5. longest_prefix_first: no engine within the bound has more of the prompt than the chosen one.
6. beyond_is_bounded: no engine is ever handed more than its room and a part of that.

Source: Mirrokni, Thorup and Zadimoghaddam, *Consistent Hashing with Bounded Loads*, SODA 2018, for
the bound.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from serve_app.messages import EngineId

SLACK = 1.25
"""Load that an engine may have beside the average, and yet be preferred."""
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
    cached_tokens: int = 0
    """Tokens of the request's prompt that it is believed to have cached."""

    @property
    def room_beyond(self) -> int:
        """Requests it may have in flight when some of them are to take others' places."""
        return self.room + max(1, int(self.room * _BEYOND))


class Loaded(Protocol):
    """Anything that has a load."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""

    @property
    def in_flight(self) -> int:
        """Requests handed to it and not ended."""

    @property
    def room(self) -> int:
        """Requests it may have in flight."""


_E = TypeVar("_E", bound=Loaded)


def choose_engine(engines: Iterable[EngineView]) -> EngineView | None:
    """Returns the engine for the next request, or None when it has to wait."""
    engines = list(engines)
    able = [e for e in engines if e.is_ready and e.in_flight < e.room]
    if not able:
        return None
    near = within_bound(engines, able) if any(e.cached_tokens for e in able) else able
    return min(near, key=lambda e: (-e.cached_tokens, *_order_of(e)))


def within_bound(engines: Iterable[_E], able: Sequence[_E]) -> Sequence[_E]:
    """Returns those of the able that stay within the bound with one request more, if any, or all.

    Args:
        engines: All of the model's.
        able: Those that may take the request.
    """
    return find_within(engines, able, SLACK) or able


def find_within(engines: Iterable[_E], some: Iterable[_E], slack: float) -> Sequence[_E]:
    """Returns those of some that have less load than so many times the average of the ready ones.

    The average is that with one request more, and a single request is always within, or nothing
    could start on idle engines.
    """
    ready = [engine for engine in engines if engine.is_ready]
    average = (sum(e.in_flight for e in ready) + 1) / sum(e.room for e in ready)
    return [e for e in some if e.in_flight < max(1.0, slack * average * e.room)]


def rank_beyond(engines: Iterable[EngineView]) -> list[EngineId]:
    """Returns the engines that take a request beyond their room, the best first."""
    candidates = [e for e in engines if e.is_ready and e.in_flight < e.room_beyond]
    return [engine.engine_id for engine in sorted(candidates, key=_order_of)]


def _order_of(engine: EngineView) -> tuple[float, EngineId]:
    return engine.in_flight / engine.room, engine.engine_id
