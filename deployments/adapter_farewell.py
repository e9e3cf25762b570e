"""Has engines forget adapters that are gone, once the last request with one has ended.

A router knows all requests of its models, those that wait included. What is gone comes back with
the next request for it: an adapter that is registered again has its old number.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from serve_app.messages import AdapterRef


class AdapterFarewell:
    """Which adapters are only waited for.

    Args:
        tell: Has engines forget one.
    """

    def __init__(self, tell: Callable[[AdapterRef], None]) -> None:
        self._tell = tell
        self._n_requests: Counter[int] = Counter()
        self._gone: dict[int, AdapterRef] = {}
        """Those that some request still needs."""

    def note_arrival(self, adapter: AdapterRef | None) -> None:
        """Counts a request, waiting or running."""
        if adapter is not None:
            self._n_requests[adapter.id] += 1
            self._gone.pop(adapter.id, None)

    def note_end(self, adapter: AdapterRef | None) -> None:
        """Counts it no more."""
        if adapter is None:
            return
        self._n_requests[adapter.id] -= 1
        if not self._n_requests[adapter.id]:
            del self._n_requests[adapter.id]
            if self._gone.pop(adapter.id, None) is not None:
                self._tell(adapter)

    def begin(self, refs: Iterable[AdapterRef]) -> None:
        """Hears that no new request is to get these."""
        for ref in refs:
            if ref.id in self._n_requests:
                self._gone[ref.id] = ref
            else:
                self._tell(ref)
