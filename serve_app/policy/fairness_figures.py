"""Says how fair a queue is at this moment: the figures that operators see.

Inputs: the queue; how many requests its engines take at once; the longest request so far.

The rule: the gap is the greatest difference of service, by weight and from the same level, of two
tenants that wait. The bound is that of `fairness_bound`, where what can be in flight is as many of
the longest request as engines take. It grows with what tenants ask for and says what is promised,
not what is usual.

Invariants (each a property test of that name):

1. gap_stays_below_the_bound: whatever arrives, while engines take no more than was said.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_bound import Capacity, bound_gap
from serve_app.policy.fairness_options import Cost
from serve_app.policy.queueing import Waiting


@dataclass(frozen=True)
class Longest:
    """The most that was asked of a queue so far."""

    prompt_tokens: int = 0
    tokens: int = 0
    """Prompt and `max_tokens` of one request."""

    def with_request(self, request: Waiting) -> "Longest":
        """Returns what it is with one more request."""
        tokens = request.prompt_tokens + request.max_tokens
        if request.prompt_tokens <= self.prompt_tokens and tokens <= self.tokens:
            return self
        return Longest(max(self.prompt_tokens, request.prompt_tokens), max(self.tokens, tokens))


@dataclass(frozen=True)
class Figures:
    """How fair a queue is. Services are in tokens of cost and weight 1."""

    gap: float
    bound: float
    lags: Mapping[TenantId, float]
    """How far each waiting tenant is behind the one that is furthest ahead; the last first."""


def measure_fairness(
    queue: Vtc,
    cost: Cost,
    longest: Longest,
    window_requests: int,
    weights: Mapping[TenantId, float],
    slack: float = 0.0,
) -> Figures:
    """Returns the figures of this moment. Linear in the tenants that wait.

    Args:
        queue: The queue.
        cost: What it charges.
        longest: Of all requests that it was given.
        window_requests: How many requests all engines together take at once.
        weights: By tenant; others have 1.
        slack: Service that locality, or what is charged for other queues, lets counters differ by.
    """
    lags = queue.find_lags()
    least_weight = min((weights.get(tenant, 1.0) for tenant in lags), default=1.0)
    capacity = Capacity(longest.prompt_tokens, window_requests * longest.tokens)
    bound = bound_gap(cost, capacity, slack=slack, least_weight=least_weight)
    return Figures(queue.find_gap(), bound, lags)
