"""Looks at something again and again, on a thread of its own, beside what is measured."""

import threading
import time
from collections.abc import Callable
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Sampler(Generic[T]):
    """Takes samples from the beginning of its `with` block to the end.

    Args:
        look: Returns a sample, or None where there is none now; called on the sampler's thread.
            What it raises ends the sampling, and is raised at the end of the block.
        every_s: Seconds of rest between two.
    """

    def __init__(self, look: Callable[[], T | None], every_s: float) -> None:
        self.samples: list[tuple[float, T]] = []
        """Seconds of the monotonic clock when it was known, and what."""
        self._look, self._every_s = look, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._fault: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._every_s):
                found = self._look()
                if found is not None:
                    self.samples.append((time.monotonic(), found))
        except Exception as fault:  # For whoever reads the samples, and not for a thread's log.
            self._fault = fault
