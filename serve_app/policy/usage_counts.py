"""Counts what a tenant, a key or a tenant on a model has used, by time.

Inputs: charges and the moments of their requests' admission.

The rule:
  - A minute is a sliding window of ticks of 50 ms. A charge made within a tick leaves the window
    when that tick is 60 s old: 60 to 60.05 s after it was made.
  - A day and a month are UTC's. A charge belongs to the day and the month of its admission.
  - A correction goes where its charge went, and nowhere if that has passed.

Invariants (each a property test of that name):

1. counts_match_history: every count is the sum of the charges that it is said to hold.
2. time_runs_forward: a clock that is set back neither frees nor holds back anything.

All integers: microseconds, ticks and pico-dollars, so that sums and waits are exact.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

TICK_US = 50_000
MINUTE_TICKS = 60_000_000 // TICK_US
_DAY_S = 86_400


class Charge(NamedTuple):
    """An amount of each thing that is counted. A correction's may be negative."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    pico_usd: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: "Charge") -> "Charge":
        """Returns the sum."""
        a, b, c, d = self
        e, f, g, h = other
        return Charge(a + e, b + f, c + g, d + h)

    def minus(self, other: "Charge") -> "Charge":
        """Returns the difference."""
        a, b, c, d = self
        e, f, g, h = other
        return Charge(a - e, b - f, c - g, d - h)


NOTHING = Charge()
Measure = Callable[[Charge], int]
Span = Literal["day", "month"]


class Moment(NamedTuple):
    """One reading of a `ForwardClock`."""

    us: int
    """Microseconds; never less than at an earlier reading."""
    utc_us: int
    """Microseconds since 1970 as the clock on the wall has them."""
    day: int
    """Days since 1970 (UTC); never less than at an earlier reading."""
    month: int
    """12 · year + month - 1 (UTC); never less than at an earlier reading."""

    @property
    def tick(self) -> int:
        """The tick of the sliding window that this is in."""
        return self.us // TICK_US

    def us_until_next(self, span: Span) -> int:
        """Returns microseconds until the next day or month begins."""
        return _start_of_next_us(self, span) - self.utc_us


def _start_of_next_us(moment: Moment, span: Span) -> int:
    if span == "day":
        return (moment.day + 1) * _DAY_S * 1_000_000
    year, month = divmod(moment.month + 1, 12)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


@dataclass
class ForwardClock:
    """Reads the wall clock so that time never runs backwards.

    Set back, the clock on the wall repeats some time: the window and the leases go on from where
    they were, and a day that has begun stays begun.
    """

    last: Moment = field(default_factory=lambda: Moment(0, 0, 0, 0))
    skew_us: int = 0
    """How far the clock on the wall was set back since the beginning."""

    def read(self, now_s: float) -> Moment:
        """Returns the moment at `now_s`, in seconds since 1970."""
        utc_us = round(now_s * 1e6)
        self.skew_us = max(self.skew_us, self.last.us - utc_us)
        date = datetime.fromtimestamp(utc_us // 1_000_000, UTC)
        self.last = Moment(
            us=utc_us + self.skew_us,
            utc_us=utc_us,
            day=max(self.last.day, utc_us // 1_000_000 // _DAY_S),
            month=max(self.last.month, 12 * date.year + date.month - 1),
        )
        return self.last

    def resume(self, moment: Moment) -> Moment:
        """Goes on from a moment that an earlier clock read, unless it is past that already."""
        self.skew_us = max(self.skew_us, moment.us - moment.utc_us)
        self.last = max(self.last, moment)
        return self.last


class Period(NamedTuple):
    """What was used on one day or in one month."""

    number: int = 0
    charge: Charge = NOTHING

    def plus(self, number: int, charge: Charge) -> "Period":
        """Returns it with a charge of day or month `number`; a later one begins anew."""
        if number < self.number:
            return self
        before = self.charge if number == self.number else NOTHING
        return Period(number, before.plus(charge))


@dataclass
class Account:
    """What one scope has used."""

    cells: OrderedDict[int, Charge] = field(default_factory=OrderedDict)
    """By tick, oldest first."""
    minute: Charge = NOTHING
    """The sum of the cells."""
    day: Period = field(default_factory=Period)
    month: Period = field(default_factory=Period)

    def add(self, charge: Charge, at: Moment, now: Moment) -> None:
        """Counts a charge, or a correction of one, for a request that was admitted `at`."""
        self.pass_time(now)
        self.day = self.day.plus(at.day, charge)
        self.month = self.month.plus(at.month, charge)
        if at.tick + MINUTE_TICKS >= now.tick:
            self.cells[at.tick] = self.cells.get(at.tick, NOTHING).plus(charge)
            self.minute = self.minute.plus(charge)

    def pass_time(self, now: Moment) -> None:
        """Drops what has left the window, and a day or month that is over."""
        while self.cells and next(iter(self.cells)) + MINUTE_TICKS < now.tick:
            _, charge = self.cells.popitem(last=False)
            self.minute = self.minute.minus(charge)
        if self.day.number < now.day:
            self.day = Period(now.day)
            self.month = self.month.plus(now.month, NOTHING)

    def used(self, span: Span) -> Charge:
        """What counts against this day's or this month's budget."""
        return self.day.charge if span == "day" else self.month.charge

    def us_until_free(self, measure: Measure, amount: int, now: Moment) -> int:
        """Returns microseconds until `amount` has left the window; it must be in there."""
        for tick, charge in self.cells.items():
            amount -= measure(charge)
            if amount <= 0:
                return _us_until_gone(tick, now)
        raise AssertionError("the window holds less than was asked for")

    def us_until_empty(self, measure: Measure, now: Moment) -> int:
        """Returns microseconds until nothing of a measure is left in the window."""
        last = next((tick for tick in reversed(self.cells) if measure(self.cells[tick])), None)
        return 0 if last is None else _us_until_gone(last, now)

    @property
    def is_blank(self) -> bool:
        """Whether it holds nothing that a new one would not hold."""
        return not (self.cells or any(self.day.charge) or any(self.month.charge))


def _us_until_gone(tick: int, now: Moment) -> int:
    return (tick + MINUTE_TICKS + 1) * TICK_US - now.us
