"""Since when adapters have been missing for requests whose turn it was: their wait is no queue."""

from collections import OrderedDict
from dataclasses import dataclass

_KEPT = 4096
"""Adapters remembered. More than these are not loaded while one request waits."""


@dataclass(slots=True)
class _Span:
    from_s: float
    to_s: float | None = None


class Absences:
    """The last time that each adapter was missing.

    Requests behind the first one for an adapter are not looked at while it is missing. So what is
    kept is of the adapter, and each request takes what of that it has waited for.
    """

    def __init__(self) -> None:
        self._spans: OrderedDict[int, _Span] = OrderedDict()

    def begin(self, adapter_id: int, now_s: float) -> None:
        """It is a request's turn, and no engine with room has the adapter in memory."""
        span = self._spans.get(adapter_id)
        if span is None or span.to_s is not None:
            self._spans[adapter_id] = _Span(now_s)
            self._spans.move_to_end(adapter_id)
            if len(self._spans) > _KEPT:
                self._spans.popitem(last=False)

    def end(self, adapter_id: int, now_s: float) -> None:
        """An engine has it."""
        span = self._spans.get(adapter_id)
        if span is not None and span.to_s is None:
            span.to_s = now_s

    def overlap_s(self, adapter_id: int, since_s: float, now_s: float) -> float:
        """Returns how long of this time it was missing."""
        span = self._spans.get(adapter_id)
        if span is None:
            return 0.0
        to_s = now_s if span.to_s is None else min(now_s, span.to_s)
        return max(0.0, to_s - max(since_s, span.from_s))
