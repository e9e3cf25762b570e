"""Demand over time: a step, a ramp, and a day with its noon, its night and its moods."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.sim_engine import SimRequest
from serve_app.names import TenantId

_TENANT = TenantId("all")
_MOOD_S, _MOOD = 300.0, 0.25
"""For so long demand is above or below what the hour suggests, by about this part."""
_LONGEST = 2048
Level = Callable[[float], float]
"""From seconds to demand, in engines' worth."""


@dataclass(frozen=True)
class Trace:
    """One course of demand."""

    name: str
    level: Level
    duration_s: float
    has_moods: bool = False

    def requests(self, seed: int, rps_each: float) -> list[SimRequest]:
        """Returns requests in the order of their arrival.

        Args:
            seed: Of all chance in it.
            rps_each: Requests a second that one engine serves.
        """
        return list(self._arrive(random.Random(seed), rps_each))

    def _arrive(self, chance: random.Random, rps_each: float) -> Iterator[SimRequest]:
        moods = [
            math.exp(chance.gauss(0.0, _MOOD) - _MOOD**2 / 2) if self.has_moods else 1.0
            for _ in range(int(self.duration_s / _MOOD_S) + 2)
        ]
        top = max(self.level(s) for s in range(int(self.duration_s))) * max(moods) * rps_each
        at_s = 0.0
        while (at_s := at_s + chance.expovariate(top)) < self.duration_s:
            if chance.random() * top < self.level(at_s) * moods[int(at_s / _MOOD_S)] * rps_each:
                prompt, output = _draw_length(chance, 200.0), _draw_length(chance, 180.0)
                yield SimRequest(at_s, _TENANT, prompt, output, output)


def _draw_length(chance: random.Random, median: float) -> int:
    """Most are short and a few are long."""
    return min(max(int(chance.lognormvariate(math.log(median), 0.8)), 4), _LONGEST)


def _step(at_s: float) -> float:
    return 4.0 if 600 <= at_s < 1800 else 1.0


def _ramp(at_s: float) -> float:
    up, down = (at_s - 600) / 1800, (5400 - at_s) / 1800
    return 0.5 + 6.0 * max(min(up, down, 1.0), 0.0)


def _day(at_s: float) -> float:
    """Nights are quiet; the day has two tops."""
    hour = at_s / 3600
    noon = math.exp(-(((hour - 10.5) / 2.5) ** 2)) + math.exp(-(((hour - 15.5) / 3.0) ** 2))
    return 0.5 + 6.0 * noon + 1.5 * math.exp(-(((hour - 20.5) / 1.5) ** 2))


TRACES = (
    Trace("step", _step, 3600.0),
    Trace("ramp", _ramp, 6000.0),
    Trace("day", _day, 86_400.0, has_moods=True),
)
