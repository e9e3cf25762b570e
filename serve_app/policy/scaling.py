"""Decides how many engines a model is to have.

Inputs, at every look: the work that has come, waits and was done, in tokens of cost; how full the
engines are; how many first tokens were late; how long an engine takes to start; the settings. All
of it is of requests that were let in: who is over a limit is refused before it waits, so it buys no
engines.

The rule, in engines: what arrives, at the pace that was seen of a full engine, or what they hold,
if that is more; room for what chance brings, which grows with the root of it; and what waits, or
will have come to wait when an engine that starts now serves, so that it is gone soon after. More
are wanted at once. Fewer are wanted when fewer would have done for some time. The load that is
aimed at gives way when first tokens come late.

Invariants (each a property test of that name):

1. within_bounds: never below `least` nor above `most`.
2. up_at_once: what a look needs is granted at that look.
3. down_slowly: never below what any look of the last `scale_down_after_s` needed.
4. wakes_at_once: where something waits, at least one engine is wanted.
5. sleeps_only_when_idle: none is wanted only after `sleep_after_s` without any request.
6. steady_load_settles: under a load that stays as it is, the number changes no more.
7. more_work_never_fewer: with more work waiting, no fewer engines are wanted.
8. load_is_of_one_engine: work that fills one engine to the load aimed at takes one engine.
9. many_are_fuller: the more work, the less room is kept for each part of it.

Sources: for what engines hold, J. D. C. Little, "A Proof for the Queuing Formula L = λW",
Operations Research 9, 1961; for room by the root, S. Halfin and W. Whitt, "Heavy-Traffic Limits for
Queues with Many Exponential Servers", Operations Research 29, 1981. The rest is ours.
"""

import math
from collections import deque
from dataclasses import dataclass

from serve_app.config_scaling import ScalingSettings
from serve_app.policy.moving import MovingMean, MovingRate, MovingSpread

_FAST_S, _SLOW_S, _TREND_S = 10.0, 60.0, 300.0
"""Windows of the rates at which work comes: what is new, what is not chance, where it goes."""
_SURE = 1.0
"""Standard deviations of the newest rate that are put down to chance where engines seem too few."""
_PACE_S = 30.0
_HELD_S = 10.0
_CLEAR_S = 15.0
"""In which what waits is to be gone, once engines for it serve."""
_KEEP = 0.75
"""Part of the time that an engine takes to start, for which it is kept at least."""
_TELLING_FILL = 0.4
"""An engine emptier than this says little about its pace when full."""
_LATE_S = 60.0
_EASE, _EASE_EVERY_S = 0.9, 30.0
_LEAST_LOAD = 0.2
_REGAIN_S = 3600.0
_SLACK = 0.05
"""Part of an engine that is not worth one more."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a model stands, and what has happened since the last look."""

    now_s: float
    arrived: float = 0.0
    """Work that has come."""
    done: float = 0.0
    """Work that engines have done."""
    waiting: float = 0.0
    """Work that waits for an engine."""
    n_requests: int = 0
    """Requests that wait or run."""
    n_ready: int = 0
    fill: float = 0.0
    """How full the ready engines are, each by its batch or its KV cache, from 0 to 1; the sum."""
    n_first_tokens: int = 0
    n_late: int = 0
    """Of those, how many came later than they should."""
    start_s: float = 0.0
    """What an engine took to start, last time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many engines there are to be, and why."""

    engines: int
    reason: str
    need: float = 0.0
    """Engines that this look needs, unrounded and unbounded."""


class Scaler:
    """Follows one model's demand.

    Args:
        settings: Of the model.
        least: Fewest engines; 0 lets it sleep.
        most: Most engines.
        engines: How many there are to be at the beginning.
    """

    def __init__(self, settings: ScalingSettings, least: int, most: int, engines: int) -> None:
        self.settings, self.least, self.most = settings, least, most
        self._engines = engines
        self._fast, self._slow = MovingRate(_FAST_S), MovingRate(_SLOW_S)
        self._trend = MovingRate(_TREND_S)
        self._spread = MovingSpread(_TREND_S)
        self._done, self._fill = MovingRate(_PACE_S), MovingMean(_PACE_S)
        self._held = MovingMean(_HELD_S)
        self._late, self._first = MovingRate(_LATE_S), MovingRate(_LATE_S)
        self._pace: float | None = None
        self._load = settings.load
        self._eased_s = -math.inf
        self._looked_s: float | None = None
        self._busy_s: float | None = None
        """When there was a request last."""
        self._needs: deque[tuple[float, float]] = deque()
        """Times and needs of late, those that a later one exceeds left out: the first is most."""

    @property
    def pace(self) -> float | None:
        """Work a second of a full engine; None until one was seen."""
        return self._pace

    def decide(self, look: Look) -> Wanted:
        """Returns how many engines are wanted; called about once a second."""
        self._observe(look)
        need, reason = self._need(look)
        self._remember(look, need)
        lasting = self._needs[0][1]
        floor = self._floor(look)
        if _round_up(need) > self._engines:
            self._engines = _round_up(need)
        elif _round_up(lasting) < self._engines:
            self._engines = _round_up(lasting)
            reason = f"{lasting:.2f} were enough for {self._hold_s(look):.0f} s"
        else:
            reason = f"{need:.2f} are needed"
        if floor == 0 and self._is_idle(look):
            self._engines, reason = 0, f"no request for {self.settings.sleep_after_s:g} s"
        self._engines = min(max(self._engines, floor), self.most)
        return Wanted(self._engines, reason, need)

    # --- what is needed ---------------------------------------------------------------------

    def _need(self, look: Look) -> tuple[float, str]:
        held = self._held.value
        if self._pace is None:
            # The first engine that fills teaches what one can do.
            need = add_room(held, self._load) + (look.waiting > 0)
            return need, "work waits, and no pace is known yet"
        flow = self._forecast(look) / self._pace
        backlog = self._backlog(look, self._pace)
        # A pace next to none would ask for engines without end.
        busy = min(max(flow, held), self.most + 1.0)
        need = min(add_room(busy, self._load) + backlog, self.most + 1.0)
        return need, (
            f"work for {flow:.2f} comes, {held:.2f} are full, and what waits takes {backlog:.2f}"
        )

    def _backlog(self, look: Look, pace: float) -> float:
        """Engines for what waits, or will wait when one that starts now serves, if that is more.

        That is only foreseen where what comes is more than ready engines do for sure: else every
        whim of chance, times the seconds of a start, would bring engines.
        """
        sure = self._fast.value - _SURE * self._spread.deviation(_FAST_S)
        missing = min(max(sure / pace - look.n_ready, 0.0), self.most) * look.start_s
        clear_s = max(self.settings.ttft_target_s, min(look.start_s, _CLEAR_S))
        return max(look.waiting / pace, missing) / clear_s

    def _forecast(self, look: Look) -> float:
        """Work a second that will come when an engine that starts now is ready."""
        rise = (self._slow.value - self._trend.value) / (_TREND_S - _SLOW_S)
        ahead = self._slow.value + max(rise, 0.0) * (look.start_s + _SLOW_S)
        return max(self._fast.value, ahead)

    def _floor(self, look: Look) -> int:
        return max(self.least, int(look.n_requests > 0 or not self._is_idle(look)))

    def _is_idle(self, look: Look) -> bool:
        if look.n_requests:
            return False
        assert self._busy_s is not None, "a look comes first"
        return look.now_s - self._busy_s >= self.settings.sleep_after_s

    # --- what is known ----------------------------------------------------------------------

    def _observe(self, look: Look) -> None:
        passed_s = 0.0 if self._looked_s is None else max(look.now_s - self._looked_s, 0.0)
        self._looked_s = look.now_s
        if self._busy_s is None:
            # What there is at the beginning is there for a reason, and none is for a reason, too.
            self._needs.append((look.now_s, float(self._engines)))
            self._busy_s = look.now_s if self._engines else -math.inf
        if look.n_requests or look.arrived:
            self._busy_s = look.now_s
        self._spread.add(look.arrived, passed_s, self._slow.value)
        for rate in (self._fast, self._slow, self._trend):
            rate.add(look.arrived, passed_s)
        self._done.add(look.done, passed_s)
        self._fill.add(look.fill, passed_s)
        self._held.add(look.fill, passed_s)
        self._late.add(look.n_late, passed_s)
        self._first.add(look.n_first_tokens, passed_s)
        if self._fill.value >= _TELLING_FILL * max(look.n_ready, 1) and self._done.value > 0:
            self._pace = self._done.value / self._fill.value
        self._aim(look, passed_s)

    def _aim(self, look: Look, passed_s: float) -> None:
        """Late answers while nothing is on its way are the fault of the load that was aimed at."""
        wanted = self.settings.load
        self._load += (wanted - self._load) * min(passed_s / _REGAIN_S, 1.0)
        is_late = self._late.value > (1 - self.settings.ttft_attainment) * self._first.value
        is_settled = look.n_ready == self._engines < self.most
        if look.n_late and is_late and is_settled and look.now_s - self._eased_s > _EASE_EVERY_S:
            self._load = max(self._load * _EASE, min(wanted, _LEAST_LOAD))
            self._eased_s = look.now_s

    def _hold_s(self, look: Look) -> float:
        """An engine that takes long to come back is kept longer."""
        return max(self.settings.scale_down_after_s, _KEEP * look.start_s)

    def _remember(self, look: Look, need: float) -> None:
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((look.now_s, need))
        while self._needs[0][0] < look.now_s - self._hold_s(look):
            self._needs.popleft()


def add_room(busy: float, load: float) -> float:
    """Returns the engines in which work that fills so many leaves room for what chance brings.

    Args:
        busy: Engines that the work would fill.
        load: How full one engine is to be, from 0 to 1.
    """
    return busy + (1 - load) / math.sqrt(load) * math.sqrt(busy)


def _round_up(need: float) -> int:
    return math.ceil(need - _SLACK)
