"""Decides who is certain to get the first token too late, so that it need not be served at all.

Inputs: how many requests of whom wait, weights and tiers; how fast the queue has moved of late; the
model's objective for the first token.

The rule:
  - By fair turns, the n-th waiting request of a tenant comes after n - 1 of its own, after n - 1 by
    weight of every other tenant of its tier, as far as they have so many, and after all of higher
    tiers. That many, at the pace of the queue, are the least that it has to wait.
  - A newcomer that has to wait longer than its objective is refused. So is one that has waited so
    long: what serves it late serves another late, too.
  - The pace is that of the time since the queue was last empty, ten seconds at most. Without enough
    of it nobody is refused.

Invariants (each a property test of that name):

1. first_of_a_tenant_may_wait: where no higher tier waits, one that has nothing waiting joins.
2. no_refusal_without_evidence: where the pace is not known, everyone joins.
3. more_before_means_longer: nobody waits less because more wait.
4. pace_is_what_was_handed_out: a queue that moves evenly is found to move at that pace.

Source: Sheng et al., *S-LoRA*, MLSys 2024, early abort. There the newest go first; here the fair
order stays, and those are turned away for whom it comes too late (bench/RESULTS.md compares).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

_WINDOW_S = 10.0
_LEAST_S = 1.0
_LEAST_TURNS = 8
"""Less is no evidence."""


@dataclass(frozen=True)
class Waiters:
    """What one tenant has waiting."""

    n: int
    weight: float = 1.0
    tier: int = 0
    """0 goes first."""


class Pace:
    """How fast a queue moves while somebody waits."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, n_turns: int) -> None:
        """Takes how many turns there were so far; called again and again while somebody waits."""
        self._seen.append((now_s, n_turns))
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - _WINDOW_S:
            self._seen.popleft()

    def clear(self) -> None:
        """Nobody waits: from now on turns are as many as requests, and say nothing."""
        self._seen.clear()

    def turns_per_s(self) -> float | None:
        """Returns the pace; None where there is no evidence."""
        if len(self._seen) < 2:
            return None
        (from_s, before), (to_s, after) = self._seen[0], self._seen[-1]
        if to_s - from_s < _LEAST_S or after - before < _LEAST_TURNS:
            return None
        return (after - before) / (to_s - from_s)


def count_before(own: Waiters, others: Iterable[Waiters]) -> float:
    """Returns how many turns come before a tenant's last waiting request, at least.

    Args:
        own: Of the tenant, that request included.
        others: Of the other tenants.
    """
    before = float(own.n - 1)
    for other in others:
        if other.tier == own.tier:
            before += min(other.n, (own.n - 1) * other.weight / own.weight)
        elif other.tier < own.tier:
            before += other.n
    return before


def lateness_of(n_before: float, turns_per_s: float | None, objective_s: float) -> float | None:
    """Returns by how many seconds a request is late at least; None where it may be in time."""
    if turns_per_s is None or n_before <= objective_s * turns_per_s:
        return None
    return n_before / turns_per_s - objective_s
