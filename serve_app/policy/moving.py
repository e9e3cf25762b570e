"""Averages that forget: what happened long ago counts for less and less.

Invariants (each a property test of that name):

1. mean_stays_within: a mean is never beyond the least and the greatest of what it was given.
2. rate_of_a_steady_flow: of what comes evenly the rate is known after the first look, exactly.
3. steady_flow_has_no_spread: what comes evenly leaves nothing to chance.
4. longer_windows_err_less: the longer a rate is taken over, the less chance does to it.
"""

import math


class MovingMean:
    """The mean of a value over about the last `window_s`."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._sum = 0.0
        self._weight = 0.0

    def add(self, value: float, passed_s: float) -> None:
        """Takes what was so for the last `passed_s`."""
        keep = math.exp(-passed_s / self._window_s)
        self._sum = self._sum * keep + value * (1 - keep)
        self._weight = self._weight * keep + (1 - keep)

    @property
    def value(self) -> float:
        """The mean; 0 before anything is known."""
        return self._sum / self._weight if self._weight else 0.0


class MovingRate:
    """How much comes a second, over about the last `window_s`."""

    def __init__(self, window_s: float) -> None:
        self._mean = MovingMean(window_s)

    def add(self, amount: float, passed_s: float) -> None:
        """Takes what has come in the last `passed_s`; of no time at all there is no rate."""
        if passed_s > 0:
            self._mean.add(amount / passed_s, passed_s)

    @property
    def value(self) -> float:
        """Amount a second; 0 before anything is known."""
        return self._mean.value


class MovingSpread:
    """What chance does to a rate, as seen over about the last `window_s`."""

    def __init__(self, window_s: float) -> None:
        self._variance = MovingMean(window_s)
        """Of the amount of a second."""

    def add(self, amount: float, passed_s: float, rate: float) -> None:
        """Takes what has come in the last `passed_s`, where so much a second was to be expected."""
        if passed_s > 0:
            self._variance.add((amount / passed_s - rate) ** 2 * passed_s, passed_s)

    def deviation(self, window_s: float) -> float:
        """Returns the standard deviation of a `MovingRate` over this window."""
        return math.sqrt(self._variance.value / (2 * window_s))
