"""Decides whether a request may join the queue.

Inputs: how many wait, the limits. Time and chance play no part.

Rule: a request joins unless `max_waiting` already wait, in which case the client is told to come
back after `retry_after_s`. A request that finds room on an engine never waits and is not counted.

Invariants (each a property test of that name):

1. queue_is_bounded: if every verdict is heeded, no more than `max_waiting` ever wait.
2. no_false_refusal: with fewer than `max_waiting` waiting, nobody is refused.
"""

from dataclasses import dataclass

from serve_app.config import LimitSettings


@dataclass(frozen=True)
class Refusal:
    """Why a request may not join, and when to try again."""

    reason: str
    retry_after_s: float


def admit(n_waiting: int, limits: LimitSettings) -> Refusal | None:
    """Returns None to let the request join."""
    if n_waiting < limits.max_waiting:
        return None
    return Refusal(
        f"{n_waiting} requests already wait for this model and limits.max_waiting is "
        f"{limits.max_waiting}. Try again in {limits.retry_after_s:g} s.",
        limits.retry_after_s,
    )
