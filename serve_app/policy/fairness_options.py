"""What may differ between one fair queue and another: cost, shares, prediction, locality, tiers.

Costs are whole numbers of units, a millionth of the service of one prompt token. So a refund gives
back exactly what was charged, in whatever order.

Invariants (each a property test of that name):

1. cost_is_linear: n tokens in one charge cost what they cost in many.
2. prediction_within_limits: a predicted length is from 0 to the request's `max_tokens`.
3. floor_holds: while a lower tier waits, it is charged at least its floor of all that is charged,
   but for a fixed amount.
4. strict_above_floor: while a higher tier waits, a lower one goes first only to reach its floor.

Sources: Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, section 4.3 (weights)
and 4.4 (prediction by the mean of a client's last requests); Cao et al., *Locality-aware Fair
Scheduling in LLM Serving*, 2025 (longest prefix within a quantum). Tiers are our own.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serve_app.names import TenantId
from serve_app.policy.queueing import Waiting

UNITS = 1_000_000
"""Units in the service of one token of cost and weight 1."""


@dataclass(frozen=True)
class Share:
    """What a tenant is entitled to."""

    weight: float = 1.0
    """Twice the weight is twice the service while both wait. Above 0."""
    tier: int = 0
    """0 goes first."""


@dataclass(frozen=True)
class Cost:
    """Service per token. A model's factor multiplies all three."""

    prompt: float = 1.0
    cached: float = 0.0
    """Of a prompt token whose KV blocks were cached. 0 charges what is computed."""
    output: float = 2.0
    models: Mapping[str, float] = field(default_factory=dict)
    """Factor by model, for one domain over several. Others have 1."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Units per token for one tenant on one model: cost divided by weight."""

    prompt: int
    cached: int
    output: int

    def price(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Returns the units that a request costs. One prompt token is always computed."""
        computed = max(prompt_tokens - cached_tokens, min(prompt_tokens, 1))
        cached = prompt_tokens - computed
        return computed * self.prompt + cached * self.cached + output_tokens * self.output


def plan_rates(cost: Cost, weight: float, model: str) -> Rates:
    """Returns what a token costs a tenant of this weight."""
    scale = UNITS * cost.models.get(model, 1.0) / weight
    return Rates(round(cost.prompt * scale), round(cost.cached * scale), round(cost.output * scale))


class Predictor(Protocol):
    """Guesses how long answers will be."""

    def predict(self, request: Waiting) -> int:
        """Returns output tokens to charge for at admission."""

    def learn(self, tenant: TenantId, output_tokens: int) -> None:
        """Takes note of a finished answer."""

    def export(self) -> dict[str, list[int]]:
        """Returns everything learned, for a snapshot."""

    def load(self, lengths: Mapping[str, Sequence[int]]) -> None:
        """Replaces everything learned."""


class NoPrediction:
    """Charges each token when it is produced, as plain VTC."""

    def predict(self, request: Waiting) -> int:
        """Returns 0."""
        return 0

    def learn(self, tenant: TenantId, output_tokens: int) -> None:
        """Learns nothing."""

    def export(self) -> dict[str, list[int]]:
        """Returns nothing."""
        return {}

    def load(self, lengths: Mapping[str, Sequence[int]]) -> None:
        """Takes nothing."""


class MovingAverage:
    """The mean of a tenant's last lengths; of everybody's, for a tenant without any.

    Args:
        window: Lengths remembered of each tenant.
        max_tenants: Tenants remembered; the one that finished nothing for longest is forgotten.
    """

    _EVERYBODY = ""

    def __init__(self, window: int = 5, max_tenants: int = 20_000) -> None:
        self._window = window
        self._max_tenants = max_tenants
        self._lengths: OrderedDict[str, deque[int]] = OrderedDict()

    def predict(self, request: Waiting) -> int:
        """Returns the mean, rounded, no more than the request allows."""
        lengths = self._lengths.get(request.tenant) or self._lengths.get(self._EVERYBODY)
        if not lengths:
            return 0
        return min(round(sum(lengths) / len(lengths)), request.max_tokens)

    def learn(self, tenant: TenantId, output_tokens: int) -> None:
        """Takes note of a finished answer."""
        for key in (self._EVERYBODY, tenant):
            self._lengths.setdefault(key, deque(maxlen=self._window)).append(output_tokens)
            self._lengths.move_to_end(key)
        while len(self._lengths) > self._max_tenants:
            self._lengths.popitem(last=False)

    def export(self) -> dict[str, list[int]]:
        """Returns the lengths by tenant, the longest silent first."""
        return {tenant: list(lengths) for tenant, lengths in self._lengths.items()}

    def load(self, lengths: Mapping[str, Sequence[int]]) -> None:
        """Replaces everything learned."""
        self._lengths = OrderedDict(
            (tenant, deque(some, maxlen=self._window)) for tenant, some in lengths.items()
        )


@dataclass(frozen=True)
class Locality:
    """Prefers a loaded adapter, then the longest cached prefix, among tenants almost level."""

    quantum: float
    """How far above the least counter a tenant may go first, in service. Counters of backlogged
    tenants then differ by at most this much more."""
    max_candidates: int = 16
    """Requests looked at for one decision."""


class TierFloor:
    """Strict priority between tiers, with a least share for the lower ones.

    Each lower tier earns `floor` of all service that is charged and pays what it is charged. While
    it waits behind a higher one and has earned more than it paid, it goes first. One that does not
    wait saves nothing, but its debt stays.

    Args:
        floor: Least share of each lower tier; 0 starves them as long as a higher one waits.
        cap: Service that can be earned or owed, so that the distant past does not count.
    """

    def __init__(self, floor: float = 0.1, cap: float = 10_000.0) -> None:
        self._floor = floor
        self._cap = cap * UNITS
        self._recent: dict[int, int] = {}
        self._credit: dict[int, float] = {}

    def charge(self, tier: int, units: int) -> None:
        """Counts what a tier was charged; less than 0 for a refund."""
        self._recent[tier] = self._recent.get(tier, 0) + units

    def order(self, tiers: Sequence[int]) -> list[int]:
        """Returns the tiers that wait in the order in which they may go.

        Args:
            tiers: Those with waiting requests, the highest (0) first.
        """
        total = sum(self._recent.values())
        waiting = set(tiers[1:])
        for tier in waiting | self._credit.keys() | self._recent.keys():
            earned = self._floor * total - self._recent.get(tier, 0)
            most = self._cap if tier in waiting else 0.0
            self._credit[tier] = min(max(self._credit.get(tier, 0.0) + earned, -self._cap), most)
        self._recent = {}
        owed = [tier for tier in tiers[1:] if self._credit[tier] > 0]
        return owed + [tier for tier in tiers if tier not in owed]

    def owed(self, tier: int) -> float:
        """Returns the units that a tier had earned and not got when `order` was last asked."""
        return self._credit.get(tier, 0.0)

    @property
    def floor(self) -> float:
        """Least share of each lower tier."""
        return self._floor

    @property
    def cap_units(self) -> float:
        """Units that can be earned or owed."""
        return self._cap

    def export(self) -> tuple[dict[int, float], dict[int, int]]:
        """Returns credits, and charges not looked at yet, for a snapshot."""
        return dict(self._credit), dict(self._recent)

    def load(self, credit: Mapping[int, float], recent: Mapping[int, int]) -> None:
        """Replaces everything that `export` returns."""
        self._credit, self._recent = dict(credit), dict(recent)
