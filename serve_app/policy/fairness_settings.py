"""What a fair queue is told once."""

from dataclasses import dataclass, field

from serve_app.policy.fairness_options import UNITS, Cost, Locality


@dataclass(frozen=True)
class VtcSettings:
    """Costs and options of a fair queue."""

    cost: Cost = field(default_factory=Cost)
    locality: Locality | None = None
    burst: float = 0.0
    """Service that a tenant which was away may have saved up, so that a short burst of a light
    tenant goes first. Counters of backlogged tenants then differ by at most this much more."""
    max_credit: float | None = None
    """Service that a tenant whose lanes have no room may save up; None sets no bound. Not below the
    bound on counters."""
    passing: float | None = 0.0
    """How far above a tenant whose request is only too big for the room left (`Later`) others may
    go first, in service. Then all wait until it fits. None lets them pass for ever. Counters of
    backlogged tenants then differ by at most this much more."""
    floor: float = 0.1
    """Least share of a lower tier while higher ones wait, 0 to 1."""
    lifts: bool = True
    """False is Least Counter First, for comparison only."""


def to_units(service: float) -> int:
    """Returns service as counters have it."""
    return round(service * UNITS)
