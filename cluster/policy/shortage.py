"""Says how likely it is that too few nodes are left after one start-up time.

Inputs: how many spot nodes are in each zone, and each zone's chance of a reclaim in that time.

The rule:
  - A reclaim takes all nodes of its zone with chance `collapse`, else one.
  - With chance `together` the zones of a region go in one order, the likeliest first; else each
    goes by itself. Regions are independent.
  - On-demand nodes stay.

Invariants:
  1. chances_add_up: to one.
  2. more_nodes_are_safer: a further node never raises the chance of a shortage.
  3. spreading_is_safer: of nodes in equal zones, one in each is no worse than all in one.

Source: convolution of independent losses; the shared order is the comonotone coupling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.policy.fleet import ZoneId

Chances = tuple[float, ...]
"""Chance of each number of losses, from 0 on."""

Holding = tuple[int, float]
"""Nodes in a zone, and the zone's chance of a reclaim."""


@dataclass(frozen=True)
class Odds:
    """What may happen to a fleet's spot nodes within one start-up time.

    Attributes:
        regions: Region of each zone.
        chances: Chance of a reclaim in each zone.
        collapse: Chance that a reclaim takes all nodes of its zone.
        together: Chance that the zones of a region go in one order.
    """

    regions: Mapping[ZoneId, str]
    chances: Mapping[ZoneId, float]
    collapse: float
    together: float
    _known: dict[frozenset[tuple[ZoneId, int]], Chances] = field(default_factory=dict, repr=False)

    def count_losses(self, held: Mapping[ZoneId, int]) -> Chances:
        """Return the chances of losing 0..n of the spot nodes held."""
        key = frozenset(held.items())
        if key not in self._known:
            self._known[key] = self._count_losses(held)
        return self._known[key]

    def _count_losses(self, held: Mapping[ZoneId, int]) -> Chances:
        by_region: dict[str, list[Holding]] = {}
        for zone, n_nodes in held.items():
            if n_nodes:
                by_region.setdefault(self.regions[zone], []).append((n_nodes, self.chances[zone]))
        total: Chances = (1.0,)
        for zones in by_region.values():
            total = add_losses(total, lose_in_region(zones, self.collapse, self.together))
        return total


def chance_of_fewer(losses: Chances, n_nodes: int, needed: int) -> float:
    """Return the chance that fewer than `needed` of `n_nodes` nodes are left."""
    if n_nodes < needed:
        return 1.0
    return min(1.0, sum(losses[n_nodes - needed + 1 :]))


def lose_in_region(zones: Sequence[Holding], collapse: float, together: float) -> Chances:
    """Return the chances of losing 0..n nodes of one region."""
    alone: Chances = (1.0,)
    for n_nodes, chance in zones:
        alone = add_losses(alone, lose_in_zone(n_nodes, chance, collapse))
    if len(zones) < 2:
        return alone
    nested = _lose_in_order(sorted(zones, key=lambda zone: -zone[1]), collapse)
    return tuple((1 - together) * p + together * q for p, q in zip(alone, nested, strict=True))


def lose_in_zone(n_nodes: int, chance: float, collapse: float) -> Chances:
    """Return the chances of losing 0..n nodes of one zone."""
    if n_nodes == 1:
        return (1.0 - chance, chance)
    none_between = (0.0,) * (n_nodes - 2)
    return (1.0 - chance, chance * (1.0 - collapse), *none_between, chance * collapse)


def add_losses(one: Chances, other: Chances) -> Chances:
    """Return the chances of the sum of two independent losses."""
    total = [0.0] * (len(one) + len(other) - 1)
    for i, p in enumerate(one):
        for j, q in enumerate(other):
            total[i + j] += p * q
    return tuple(total)


def _lose_in_order(zones: Sequence[Holding], collapse: float) -> Chances:
    """Take zones in falling order of chance: one is hit only if all before it are."""
    total = [0.0] * (sum(n_nodes for n_nodes, _ in zones) + 1)
    lost: Chances = (1.0,)
    before = 1.0
    for n_nodes, chance in zones:
        for n_lost, p in enumerate(lost):
            total[n_lost] += (before - chance) * p
        lost = add_losses(lost, lose_in_zone(n_nodes, 1.0, collapse))
        before = chance
    for n_lost, p in enumerate(lost):
        total[n_lost] += before * p
    return tuple(total)
