"""Corrects predicted shortages by those that came.

Inputs: at each look, the chance that was given of a shortage within the horizon, and whether the
fleet is short.

The rule: the factor is (weight + shortages seen) / (weight + shortages expected), within bounds.

Invariants:
  1. factor_is_bounded: whatever happens.
  2. surprise_raises: a shortage that begins never lowers the factor.
  3. calm_lowers: time without a shortage never raises it.

Source: the mean of the gamma posterior of a Poisson rate's ratio to its forecast.
"""

from dataclasses import dataclass


@dataclass
class Calibration:
    """What shortages were to be expected, and what came.

    Attributes:
        weight: How many expected shortages it takes to count as much as the forecast itself.
        least: Bound of the factor.
        most: Bound of the factor.
    """

    weight: float = 2.0
    least: float = 0.5
    most: float = 3.0
    _expected: float = 0.0
    _seen: int = 0
    _chance: float = 0.0
    _looked_s: float | None = None

    def look(self, chance: float | None, horizon_s: float, now_s: float) -> None:
        """Note the state.

        Args:
            chance: Of a shortage within the horizon; None while the fleet is short.
            horizon_s: What the chance is for.
            now_s: Time.
        """
        was_full = self._looked_s is not None
        if self._looked_s is not None:
            self._expected += self._chance * max(0.0, now_s - self._looked_s) / horizon_s
        if chance is None:
            self._seen += was_full
            self._looked_s = None
        else:
            self._chance, self._looked_s = chance, now_s

    @property
    def factor(self) -> float:
        """What a predicted chance is to be multiplied by."""
        ratio = (self.weight + self._seen) / (self.weight + self._expected)
        return min(self.most, max(self.least, ratio))
