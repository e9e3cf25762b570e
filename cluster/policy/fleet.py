"""The values that capacity policies take and return: offers, nodes, what happened, what to do.

All times are seconds of one clock, which the caller owns. All prices are US dollars an hour.
"""

from dataclasses import dataclass
from typing import Literal, NewType

ZoneId = NewType("ZoneId", str)
"""A zone's full name, such as `aws/us-east-1/us-east-1f`; unique over all clouds."""

NodeId = NewType("NodeId", str)

Market = Literal["spot", "on-demand"]


@dataclass(frozen=True)
class Offer:
    """What one zone asks for one node of the fleet's kind.

    Attributes:
        zone: Whose offer it is.
        cloud: The zone's cloud.
        region: The zone's region, unique over all clouds; zones of one region fail together more
            often than others.
        spot_usd_per_h: None where the zone has no spot market.
        on_demand_usd_per_h: None where the zone sells none.
    """

    zone: ZoneId
    cloud: str
    region: str
    spot_usd_per_h: float | None
    on_demand_usd_per_h: float | None


@dataclass(frozen=True)
class Node:
    """A machine that is paid for.

    Attributes:
        id: By which it is ended.
        zone: Where it is.
        market: How it is paid.
        started_s: When it was asked for.
        is_ready: Whether it serves.
        is_confirmed: Whether its cloud has said that it is there.
    """

    id: NodeId
    zone: ZoneId
    market: Market
    started_s: float
    is_ready: bool
    is_confirmed: bool = True


Refusal = Literal["stock", "quota", "credentials", "other"]
"""Why a launch failed. Only `stock` says something about the zone's machines."""


@dataclass(frozen=True)
class Launched:
    """A launch succeeded."""

    zone: ZoneId
    market: Market


@dataclass(frozen=True)
class Refused:
    """A launch failed."""

    zone: ZoneId
    market: Market
    reason: Refusal = "stock"


@dataclass(frozen=True)
class Reclaimed:
    """A cloud took spot nodes back, or says that it will.

    Attributes:
        zone: Where.
        n_nodes: How many at once.
        n_held: How many the fleet had there before.
    """

    zone: ZoneId
    n_nodes: int
    n_held: int


Happening = Launched | Refused | Reclaimed


@dataclass(frozen=True)
class Launch:
    """Start one node."""

    zone: ZoneId
    market: Market
    reason: str


@dataclass(frozen=True)
class End:
    """Drain one node, then end it."""

    node: NodeId
    reason: str


@dataclass(frozen=True)
class Plan:
    """What to do now.

    Attributes:
        launches: In order of importance.
        ends: In any order.
        shortage: Chance that fewer nodes than the target will serve, once the plan is done.
        reason: The plan in one line, for people.
    """

    launches: tuple[Launch, ...]
    ends: tuple[End, ...]
    shortage: float
    reason: str
