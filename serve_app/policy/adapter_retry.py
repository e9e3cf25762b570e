"""When an adapter that could not be had is worth another try.

Inputs: what failed, whether the adapter itself was at fault, the time.
Rule: each failure of one thing in a row makes the pause before the next try twice as long, up to a
bound; a bad adapter gets longer pauses than a store that does not answer. A success forgets.

Invariants (tests/property/test_adapter_retry.py):
1. no_try_within_the_pause: a remembered failure is told again until its pause is over.
2. pauses_double_up_to_a_bound: and never fall while failures go on.
3. every_pause_ends: whatever failed is tried again some time.
4. what_is_remembered_is_bounded: the oldest failure is forgotten first.
"""

from dataclasses import dataclass

from serve_app.errors import AdapterAwayError, AdapterRefusedError

Failure = AdapterRefusedError | AdapterAwayError

_REFUSED_S = (15.0, 1800.0)
"""First and longest pause where the adapter is at fault."""
_AWAY_S = (1.0, 60.0)
"""The same where its store is, or this node."""


@dataclass(frozen=True)
class _Remembered:
    failure: Failure
    pause_s: float
    until_s: float


class FailureBook:
    """Remembers failures by what failed. Belongs to one event loop.

    Args:
        most: Failures that are remembered.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._failures: dict[str, _Remembered] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def find(self, what: str, now_s: float) -> Failure | None:
        """Returns the failure that is still to be told; None means try."""
        known = self._failures.get(what)
        if known is None or now_s >= known.until_s:
            return None
        return _for_now(known, now_s)

    def note(self, what: str, failure: Failure, now_s: float) -> float:
        """Remembers a failure; returns the seconds until another try."""
        first_s, longest_s = _REFUSED_S if isinstance(failure, AdapterRefusedError) else _AWAY_S
        known = self._failures.pop(what, None)
        is_same_kind = known is not None and type(known.failure) is type(failure)
        pause_s = min(longest_s, known.pause_s * 2) if known and is_same_kind else first_s
        if len(self._failures) >= self._most:
            del self._failures[next(iter(self._failures))]
        self._failures[what] = _Remembered(failure, pause_s, now_s + pause_s)
        return pause_s

    def forget(self, what: str) -> None:
        """Forgets a failure: it worked, or somebody says that it will."""
        self._failures.pop(what, None)


def _for_now(known: _Remembered, now_s: float) -> Failure:
    """A new exception each time, as one that is raised twice collects tracebacks."""
    failure = known.failure
    if isinstance(failure, AdapterRefusedError):
        return AdapterRefusedError(failure.message, failure.is_missing)
    return AdapterAwayError(failure.message, max(failure.retry_after_s, known.until_s - now_s))
