"""How long requests took to begin in an engine, by the engine's own clock.

The core's first output of a request carries events: when the core got it, and when it began. vLLM
means them for its statistics.
"""

import time
from collections.abc import Callable

from vllm.v1.engine import EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs

from serve_app.messages import EngineTimes


class BeginTimes:
    """Keeps when requests came to the server until their first output. One thread's.

    Args:
        now: The monotonic clock, which events and outputs are timed by, too.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._came_s: dict[str, float | None] = {}
        """None where there was no adapter to wait for: then it is in the core at once."""

    def take(self, request_id: str, *, has_adapter: bool) -> None:
        """A request has come."""
        self._came_s[request_id] = self._now() if has_adapter else None

    def forget(self, request_id: str) -> None:
        """A request was aborted."""
        self._came_s.pop(request_id, None)

    def read(self, outputs: EngineCoreOutputs) -> dict[str, EngineTimes]:
        """Returns how those began that say something for the first time in this step."""
        times = {}
        for output in outputs.outputs if self._came_s else ():
            if output.request_id in self._came_s:
                came_s = self._came_s.pop(output.request_id)
                found = _times_of(output, came_s, outputs.timestamp)
                if found is not None:
                    times[output.request_id] = found
        return times


def _times_of(output: EngineCoreOutput, came_s: float | None, first_s: float) -> EngineTimes | None:
    """None where the core has not said when it began: it failed before."""
    queued_s = _find(output, EngineCoreEventType.QUEUED)
    begun_s = _find(output, EngineCoreEventType.SCHEDULED)
    if queued_s is None or begun_s is None:
        return None
    load_s = 0.0 if came_s is None else queued_s - came_s
    return EngineTimes(max(0.0, load_s), max(0.0, begun_s - queued_s), max(0.0, first_s - begun_s))


def _find(output: EngineCoreOutput, kind: EngineCoreEventType) -> float | None:
    """The first of its kind: one that was preempted may have begun twice."""
    return next((e.timestamp for e in output.events or () if e.type == kind), None)
