"""How far apart two backlogged tenants may get, and how far they did.

Inputs: what the engines can hold, costs and options; service by tenant as it happens.

The bound for two tenants that wait without a break, divided by their weights: the counters of those
who wait differ by at most U = max(w_p * longest prompt, w_q * tokens that can be in flight) / least
weight. So over any stretch of time their service differs by at most 2 U.
  - A locality quantum, `burst` and `passing` each let counters differ by that much more: `slack`.
  - What is charged for other queues lets them differ by as much as is charged at most: `slack`.
  - Tokens that are charged late may give a tenant as many turns too many: they count as in flight.
  - With several engines, what all of them can hold is in flight; with a window beyond the batch,
    the whole window.
  - With prediction, a request holds what it may need, its prompt and `max_tokens`.

Invariants (each a property test of that name):

1. bound_grows_by_the_quantum: locality adds twice its quantum to the gap, the quantum to counters.
2. meter_agrees_with_definition: `GapMeter` finds what a search of all pairs and stretches finds.

Source: Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, section 4.2.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from serve_app.names import TenantId
from serve_app.policy.fairness_options import Cost


@dataclass(frozen=True)
class Capacity:
    """What can be in flight at once on all engines that a queue feeds."""

    max_prompt_tokens: int
    """Longest prompt."""
    in_flight_tokens: int
    """Prompt and output tokens of all requests handed over and not ended, at most."""
    uncharged_tokens: int = 0
    """Output tokens that may be produced before the queue hears of them, at most."""


def bound_counters(
    cost: Cost, capacity: Capacity, *, slack: float = 0.0, least_weight: float = 1.0
) -> float:
    """Returns by how much counters of waiting tenants differ at most, in service."""
    factor = max(cost.models.values(), default=1.0)
    tokens = capacity.in_flight_tokens + capacity.uncharged_tokens
    most = max(cost.prompt * capacity.max_prompt_tokens, cost.output * tokens, cost.prompt * tokens)
    return max(factor, 1.0) * most / least_weight + slack


def bound_gap(
    cost: Cost, capacity: Capacity, *, slack: float = 0.0, least_weight: float = 1.0
) -> float:
    """Returns by how much the service of two backlogged tenants differs at most."""
    return 2 * bound_counters(cost, capacity, slack=slack, least_weight=least_weight)


class GapMeter:
    """Measures the greatest gap there was: for all pairs, over all stretches in which both waited.

    Quadratic in the tenants that wait; for simulators, benchmarks and offline checks.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self.worst_pair: tuple[TenantId, TenantId] | None = None
        self._range: dict[tuple[TenantId, TenantId], tuple[float, float]] = {}

    def observe(self, service: Mapping[TenantId, float], backlogged: Set[TenantId]) -> None:
        """Takes the state after an event: service so far, divided by weight, and who waits.

        To be called after every event that serves somebody or lets a tenant wait or stop waiting.
        """
        tenants = sorted(backlogged)
        ranges: dict[tuple[TenantId, TenantId], tuple[float, float]] = {}
        for i, one in enumerate(tenants):
            for other in tenants[i + 1 :]:
                ahead = service[one] - service[other]
                low, high = self._range.get((one, other), (ahead, ahead))
                low, high = min(low, ahead), max(high, ahead)
                ranges[one, other] = low, high
                if high - low > self.worst:
                    self.worst, self.worst_pair = high - low, (one, other)
        self._range = ranges
