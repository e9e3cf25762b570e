"""Measures how late an event loop is, and shows now and then what is only known by looking."""

import asyncio
from collections.abc import Callable

from serve_app.metrics import Metrics
from serve_app.telemetry import LOOP_LAG

_EVERY_S = 0.25
_LOOKS_EVERY = 4
"""Of these times, one is for looking."""


async def watch_loop(metrics: Metrics, show: Callable[[], None] = lambda: None) -> None:
    """Runs until cancelled, on the loop that is watched.

    Args:
        metrics: Takes what is measured.
        show: Sets gauges; called about once a second.
    """
    lag = metrics.histogram(LOOP_LAG)
    loop = asyncio.get_running_loop()
    count = 0
    while True:
        due_s = loop.time() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        lag.observe(max(0.0, loop.time() - due_s))
        count += 1
        if count % _LOOKS_EVERY == 0:
            show()
