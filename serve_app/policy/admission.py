"""Decides whether a request may join the queue.

Inputs: how many wait, of whom, the limits. Time and chance play no part.

Rule: while fewer than `max_waiting` wait, everyone joins. Beyond that only a tenant with less than
its equal part of the queue does, so that nobody can close the door to others by filling it; at
twice `max_waiting` nobody does. Who is refused is told to come back after `retry_after_s`. A
request that finds room on an engine never waits and is not counted.

Invariants (each a property test of that name):

1. queue_is_bounded: if every verdict is heeded, no more than twice `max_waiting` ever wait.
2. no_false_refusal: with fewer than `max_waiting` waiting, nobody is refused.
3. full_queue_keeps_its_door_open: a tenant with nothing waiting joins a queue that another filled.
"""

from dataclasses import dataclass

from serve_app.config import LimitSettings


@dataclass(frozen=True)
class QueueView:
    """The queue that a request wants to join, without that request."""

    n_waiting: int
    n_waiting_of_tenant: int
    n_other_tenants: int
    """Other tenants that have something waiting."""


@dataclass(frozen=True)
class Refusal:
    """Why a request may not join, and when to try again."""

    reason: str
    retry_after_s: float


def admit(queue: QueueView, limits: LimitSettings) -> Refusal | None:
    """Returns None to let the request join."""
    if queue.n_waiting < limits.max_waiting:
        return None
    equal_part = limits.max_waiting // (queue.n_other_tenants + 1)
    has_part_left = queue.n_waiting_of_tenant < equal_part
    if has_part_left and queue.n_waiting < 2 * limits.max_waiting:
        return None
    return Refusal(
        f"{queue.n_waiting} requests already wait for this model, {queue.n_waiting_of_tenant} of "
        f"them yours, and limits.max_waiting is {limits.max_waiting}. Try again in "
        f"{limits.retry_after_s:g} s.",
        limits.retry_after_s,
    )
