"""Decides whether a request that must end by a deadline is worth beginning.

Inputs: how many requests wait for the model, how fast it answers, how long answers usually are, the
seconds that the client gives it.

The rule: what waits needs about n · mean length / tokens a second. A request that would have to
wait longer than its client does is refused at once, and told how much too long.

Invariants (each a property test of that name):

1. no_refusal_without_evidence: where nobody waits, or pace or length are unknown, none is refused.
2. refused_iff_late: given evidence, a request is refused exactly if the wait is beyond its time.
3. longer_time_never_hurts: one that is taken with some seconds is taken with more.
"""


def estimate_wait_s(n_waiting: int, tokens_per_s: float, mean_tokens: float) -> float:
    """Returns seconds until a request that joins now begins; 0 if nothing speaks for a wait."""
    if n_waiting <= 0 or tokens_per_s <= 0 or mean_tokens <= 0:
        return 0.0
    return n_waiting * mean_tokens / tokens_per_s


def lateness_s(wait_s: float, timeout_s: float | None) -> float | None:
    """Returns by how much a request would begin too late, or None if it can be in time."""
    if timeout_s is None or wait_s <= timeout_s:
        return None
    return wait_s - timeout_s
