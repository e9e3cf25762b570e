"""Notices a core that has work and makes no step."""


class HangWatch:
    """Looks at a core from outside, regularly.

    Args:
        timeout_s: The longest that a step may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._idle_s: float | None = None
        """When it was last seen without work."""

    def has_hung(self, now_s: float, last_step_s: float, *, is_busy: bool) -> bool:
        """Whether no step has ended for too long although there was work all the time."""
        if not is_busy or self._idle_s is None:
            self._idle_s = now_s
        return now_s - max(last_step_s, self._idle_s) > self._timeout_s
