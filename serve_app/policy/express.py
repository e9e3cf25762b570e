"""Decides whether a request may go to a full engine, where a running one then yields its place.

In turn-taking alone a tenant within its share waits for somebody's answer to end, however little it
asks for. So the few who hold less than others get a place at once. Turns stay as they are: only a
request whose turn it is may go, so nobody gets more service, but some get it sooner.

Inputs: who asks, with what it holds on that engine; what each of the others holds there.

The rule: it may go if it is the only one of its tenant that waits, and somebody can give a place:
a tenant of a lower tier; or one of the same that has got no less service, and that holds no less by
weight than the newcomer once the place has changed hands.

Invariants (each a property test of that name):

1. nobody_overtakes: in one tier, the newcomer holds no more, by weight, than the one that gave.
2. backlog_waits: a tenant with more waiting may not, nor one that has got more than all others.
3. places_settle: tenants of one tier and weight that hold a place each take none from one another.
4. tiers_yield_down: nobody gives a place to a lower tier.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """A tenant and the places that it holds on one engine."""

    n_places: int
    weight: float
    tier: int
    """0 goes first."""
    counter: int
    """Service that it got, in units."""


def may_go_beyond(newcomer: Holder, n_waiting: int, others: Iterable[Holder]) -> bool:
    """Returns whether a request may go to an engine that is full.

    Args:
        newcomer: Its tenant.
        n_waiting: Requests of its tenant that wait, itself included.
        others: Every other tenant with a place there.
    """
    return n_waiting == 1 and any(_could_give(other, newcomer) for other in others)


def _could_give(other: Holder, newcomer: Holder) -> bool:
    if other.tier != newcomer.tier:
        return other.tier > newcomer.tier
    if other.counter < newcomer.counter:
        return False
    left, got = other.n_places - 1, newcomer.n_places + 1
    return left / other.weight >= got / newcomer.weight
