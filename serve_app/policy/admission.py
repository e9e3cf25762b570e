"""Decides whether a request may join the queue.

Inputs: how many wait, of whom, how fast the queue moves, the limits. Chance plays no part.

Rule: while fewer than `max_waiting` wait, everyone joins. Beyond that only a tenant with less than
its equal part of the queue does, so that nobody can close the door to others by filling it; at
twice `max_waiting` nobody does. Nor does anyone who would be refused later anyway, because its
turn would come after `max_wait_s`: tenants take turns, so before a request go those of its own
tenant and as many of each other one, or the whole queue if that is less. Who is refused is told
to come back when those who wait now have gone. A request that finds room on an engine never waits
and is not counted.

Invariants (each a property test of that name):

1. queue_is_bounded: if every verdict is heeded, no more than twice `max_waiting` ever wait.
2. no_false_refusal: with fewer than `max_waiting` waiting, nobody is refused whose turn may come
   in time: where the pace is not known, nobody at all.
3. full_queue_keeps_its_door_open: a tenant with nothing waiting joins a queue that another filled.
4. refusals_are_prompt: nobody joins whose turn, at the present pace, comes after `max_wait_s`.
"""

from collections import deque
from dataclasses import dataclass, field

from serve_app.config import LimitSettings

_PACE_OF = 64
"""Turns that the pace is taken from, the last ones."""
_LEAST_TURNS = 8
_LONGEST_RETRY_S = 60.0


@dataclass(frozen=True)
class QueueView:
    """The queue that a request wants to join, without that request."""

    n_waiting: int
    n_waiting_of_tenant: int
    n_other_tenants: int
    """Other tenants that have something waiting."""
    turns_per_s: float | None = None
    """How fast it moves; None is not known."""

    @property
    def wait_s(self) -> float:
        """When the request's turn would come, at the present pace; 0 where that is not known."""
        if not self.turns_per_s:
            return 0.0
        in_turns = self.n_waiting_of_tenant * (self.n_other_tenants + 1)
        return min(self.n_waiting, in_turns) / self.turns_per_s


@dataclass(frozen=True)
class Refusal:
    """Why a request may not join, and when to try again."""

    reason: str
    retry_after_s: float


@dataclass
class Pace:
    """How fast a queue moves, from the turns since it was last empty: before, none had to wait."""

    _turns_s: deque[float] = field(default_factory=lambda: deque(maxlen=_PACE_OF))

    def note_turn(self, now_s: float) -> None:
        """Somebody who waited has got its turn."""
        self._turns_s.append(now_s)

    def note_empty(self) -> None:
        """Nobody waits: what was known of the pace says nothing about the next crowd."""
        self._turns_s.clear()

    def turns_per_s(self, now_s: float) -> float | None:
        """Returns turns a second; None until there were a few."""
        if len(self._turns_s) < _LEAST_TURNS or now_s <= self._turns_s[0]:
            return None
        return len(self._turns_s) / (now_s - self._turns_s[0])


def admit(queue: QueueView, limits: LimitSettings) -> Refusal | None:
    """Returns None to let the request join."""
    retry_after_s = max(limits.retry_after_s, min(queue.wait_s, _LONGEST_RETRY_S))
    if queue.wait_s > limits.max_wait_s:
        return Refusal(
            f"{queue.n_waiting} requests already wait for this model, {queue.n_waiting_of_tenant} "
            f"of them yours: this one's turn would come in {queue.wait_s:.1f} s, and "
            f"limits.max_wait_s is {limits.max_wait_s:g} s. Try again in {retry_after_s:.0f} s.",
            retry_after_s,
        )
    if queue.n_waiting < limits.max_waiting:
        return None
    equal_part = limits.max_waiting // (queue.n_other_tenants + 1)
    has_part_left = queue.n_waiting_of_tenant < equal_part
    if has_part_left and queue.n_waiting < 2 * limits.max_waiting:
        return None
    return Refusal(
        f"{queue.n_waiting} requests already wait for this model, {queue.n_waiting_of_tenant} of "
        f"them yours, and limits.max_waiting is {limits.max_waiting}. Try again in "
        f"{retry_after_s:g} s.",
        retry_after_s,
    )
