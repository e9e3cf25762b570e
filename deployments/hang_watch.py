"""Notices a core that has work and makes no step."""

_SLEPT_S = 2.0
"""Between two looks, of which there are several a second: the process itself stood still."""


class HangWatch:
    """Looks at a core from outside, regularly.

    Args:
        timeout_s: The longest that a step may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since_s = self._looked_s = 0.0
        """Since when a step could have been seen to take long, and when it last looked."""

    def has_hung(self, now_s: float, last_step_s: float, *, is_busy: bool) -> bool:
        """Whether no step has ended for too long although there was work all the time.

        Time in which the whole process or its machine was stopped does not count.
        """
        if not is_busy or now_s - self._looked_s > _SLEPT_S:
            self._since_s = now_s
        self._looked_s = now_s
        return now_s - max(last_step_s, self._since_s) > self._timeout_s
