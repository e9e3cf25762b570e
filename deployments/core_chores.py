"""What an engine's core does between steps, in parts where that takes long.

A chore goes on for a part of a step's time before each step, so that nobody who waits for tokens
feels more than that of it; when nothing runs, it is done in one go. Belongs to the core's thread.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

_SHARE = 0.2
"""Of a step, for what is done before the next."""
_LEAST_S = 0.002


class Chore:
    """Something that may be broken off and gone on with. Its result: how long it worked, in s.

    Args:
        go_on: Works for about so many seconds; returns whether all is done. What it raises goes
            to who waits, and not to the step loop.
    """

    def __init__(self, go_on: Callable[[float], bool]) -> None:
        self._go_on = go_on
        self._worked_s = 0.0
        self.done: Future[float] = Future()

    def run(self, budget_s: float) -> bool:
        """Does a part; returns whether it is over, well or badly."""
        began_s = time.monotonic()
        try:
            is_done = self._go_on(budget_s)
        except Exception as error:
            self.done.set_exception(error)
            return True
        self._worked_s += time.monotonic() - began_s
        if is_done:
            self.done.set_result(self._worked_s)
        return is_done


class Chores:
    """Those that are under way, one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[Chore] = deque()

    def add(self, chore: Chore) -> None:
        """Takes one, to be begun by `go_on`."""
        self._waiting.append(chore)

    def go_on(self, step_s: float, *, is_busy: bool) -> None:
        """Does as much as there is time for, or all of it if nobody waits for a step.

        Args:
            step_s: What the last step took.
            is_busy: Whether another one is to follow at once.
        """
        until_s = time.monotonic() + (max(_LEAST_S, _SHARE * step_s) if is_busy else math.inf)
        while self._waiting and (left_s := until_s - time.monotonic()) > 0:
            if self._waiting[0].run(left_s):
                self._waiting.popleft()
