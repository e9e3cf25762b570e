"""Decides what is done about a model of which Serve starts no engines any more.

Serve gives a version up when its engines have failed to start a few times. From then on it starts
none of the model, of no version, until something else is deployed: one that dies is not replaced.

Inputs: how many engines run and are wanted; whether another version is known to have run; how often
and how long ago something was done about it.

The rule: while as many run as are wanted nothing is done, so that whoever deployed sees that it
failed. If one is missing, the model goes back to the version that ran. Where none is known, or that
one failed, the same is tried again, each time after twice as long.

Invariants (each a property test of that name):

1. leaves_alone_what_runs: nothing is done while Serve itself starts engines, or none is missing.
2. goes_back_first: a version that ran is gone back to once one has been missing for `SETTLED_S`.
3. tries_again_ever_later: no wait is shorter than the last, none longer than `LONGEST_S`.
4. never_gives_up: where engines are missing for `LONGEST_S`, something is done.
"""

from dataclasses import dataclass
from typing import Literal

SETTLED_S = 3.0
"""Engines that are only just seen, or only just lost, may still make themselves known."""
FIRST_S = 30.0
LONGEST_S = 600.0

Step = Literal["nothing", "go_back", "try_again"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model stands with Serve."""

    is_given_up: bool
    """Whether Serve starts no more engines of it."""
    n_running: int
    n_wanted: int
    has_better: bool
    """Whether another version is known to have run."""
    n_tries: int
    """How often something was done since somebody else deployed."""
    missing_s: float
    """Seconds that engines have been missing, or that have passed since something was done."""


def choose_step(standing: Standing) -> Step:
    """Returns what is to be done now."""
    if not standing.is_given_up or standing.n_running >= standing.n_wanted:
        return "nothing"
    is_first = standing.has_better and standing.n_tries == 0
    wait_s = SETTLED_S if is_first else choose_wait_s(standing.n_tries)
    if standing.missing_s < wait_s:
        return "nothing"
    return "go_back" if standing.has_better else "try_again"


def choose_wait_s(n_tries: int) -> float:
    """Returns the seconds before one more try."""
    return float(min(LONGEST_S, FIRST_S * 2.0 ** min(n_tries, 30)))
