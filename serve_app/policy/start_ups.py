"""Decides how long an engine that could not start holds on to its place before the next one tries.

Inputs: how many of a model's engines failed to start, one after the other.

The rule: the first failure costs no wait, each further one twice the last, `LONGEST_S` at most.
Whoever replaces an engine does so as soon as it ends, so it ends later.

Invariants (each a property test of that name):

1. first_retry_is_at_once: one failure alone holds nobody.
2. waits_grow_to_a_bound: no wait is shorter than the last, none longer than `LONGEST_S`.
"""

FIRST_S = 5.0
LONGEST_S = 300.0


def choose_hold_s(n_failed: int) -> float:
    """Returns seconds; `n_failed` counts this failure."""
    if n_failed <= 1:
        return 0.0
    return float(min(LONGEST_S, FIRST_S * 2.0 ** min(n_failed - 2, 30)))
