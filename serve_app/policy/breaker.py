"""Decides whether an engine that keeps failing is given requests.

Inputs: when requests failed at the engine or could not get there; time.

The rule, a circuit breaker: `MOST` failures within `WINDOW_S` open it, and the engine gets nothing.
After a while, longer each time up to `LONGEST_S`, it is half open: one request tries. A token for
it closes the breaker, a failure opens it again. Where every engine that understands a model's
requests is open, none is skipped: a bad engine is better than none, and what fails then may not be
the engines.

Invariants (each a property test of that name):

1. few_failures_skip_nobody: fewer than `MOST` failures in any `WINDOW_S` keep it closed.
2. opens_for_longer_each_time: without a success, each opening lasts as long as the last or longer.
3. never_for_ever: an open breaker is half open after `LONGEST_S` at the latest.
4. never_all: if any engine is ready, one may be chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from serve_app.messages import EngineId

MOST = 4
WINDOW_S = 30.0
FIRST_S = 5.0
LONGEST_S = 120.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """One engine's. A new one is closed."""

    failed_s: tuple[float, ...] = ()
    """When it failed of late, while closed."""
    until_s: float | None = None
    """Until when it is open; None is closed."""
    n_opened: int = 0
    """Times in a row, without a success."""

    def with_failure(self, now_s: float) -> "Breaker":
        """A request failed there, or could not get there. Of an open one nothing else is news."""
        if self.until_s is not None:
            return self if now_s < self.until_s else self._opened(now_s)
        recent = tuple(s for s in (*self.failed_s, now_s) if s > now_s - WINDOW_S)
        return self._opened(now_s) if len(recent) >= MOST else replace(self, failed_s=recent)

    def with_success(self) -> "Breaker":
        """The request that tried has got a token."""
        return self if self.until_s is None else Breaker()

    def is_open(self, now_s: float) -> bool:
        """Whether the engine gets nothing."""
        return self.until_s is not None and now_s < self.until_s

    def is_half_open(self, now_s: float) -> bool:
        """Whether one request may try."""
        return self.until_s is not None and now_s >= self.until_s

    def _opened(self, now_s: float) -> "Breaker":
        lasts_s = min(LONGEST_S, FIRST_S * 2.0**self.n_opened)
        return Breaker((), now_s + lasts_s, self.n_opened + 1)


def find_skipped(ready: Mapping[EngineId, Breaker], now_s: float) -> set[EngineId]:
    """Returns those of a model's ready engines of one dialect that get nothing now."""
    skipped = {engine_id for engine_id, breaker in ready.items() if breaker.is_open(now_s)}
    return skipped if len(skipped) < len(ready) else set()
