"""Checks offline that tiers took their turns: strict above fair, with a floor for the lower ones.

Written apart from `fairness_options.TierFloor`. Where several tiers waited, a log tells in which
order they were asked and what the lower ones were owed. It does not tell when they were asked in
vain, so what is owed is checked from above: a tier may claim no more than it can have earned.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_SLACK = 1.0
"""Units by which sums of fractions may differ."""


class TierCheck:
    """What tiers may claim at most.

    Args:
        floor: Least share of each lower tier.
        cap_units: Service that can be earned or owed.
    """

    def __init__(self, floor: float, cap_units: float) -> None:
        self._floor = floor
        self._cap = cap_units
        self._credit: dict[int, float] = {}
        self._since: Counter[int] = Counter()

    def charge(self, tier: int, units: int) -> None:
        """Counts what a tier was charged."""
        self._since[tier] += units

    def restore(self, credit: Mapping[int, float], since: Mapping[int, int]) -> None:
        """Goes on from a snapshot."""
        self._credit, self._since = dict(credit), Counter(since)

    def check(
        self, admitted: int, asked: Sequence[tuple[int, float]], waiting: Iterable[int]
    ) -> list[str]:
        """Returns what is wrong with a turn.

        Args:
            admitted: The tier whose request was admitted.
            asked: Tiers in the order in which they were asked, with what each was owed, in units;
                empty where only one waited.
            waiting: Tiers that waited.
        """
        tiers = sorted(waiting)
        if len(tiers) < 2:
            return []
        order = [tier for tier, _ in asked]
        owed = dict(asked)
        if sorted(order) != tiers:
            return [f"tiers {tiers} waited, and {sorted(order)} were asked"]
        first = [tier for tier in tiers[1:] if owed[tier] > 0]
        found = []
        if order != first + [tier for tier in tiers if tier not in first]:
            found.append(f"tiers were asked in the order {order} while owed {owed}")
        found += [text for tier in first if (text := self._check_claim(tier, owed[tier]))]
        self._credit |= {tier: owed[tier] for tier in tiers[1:]}
        self._since.clear()
        return found

    def _check_claim(self, tier: int, claimed: float) -> str | None:
        earned = self._floor * self._since.total()
        most = max(self._credit.get(tier, 0.0) + earned - self._since[tier], earned - self._cap)
        if claimed <= min(most, self._cap) + _SLACK:
            return None
        return f"tier {tier} was owed {claimed:.0f} units and can have earned {most:.0f}"
