"""Writes down what requests use while they run.

A gateway that dies breaks their streams; what it had delivered by then is recorded all the same,
but for the last second.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence

from serve_app.gateway.answer import FrontEndAnswer
from serve_app.gateway.meter import Meter
from serve_app.usage import UsageRecord

_EVERY_S = 1.0
_AT_ONCE = 50
"""Records made without letting streams go on."""


class OpenUsage:
    """The requests of one gateway that run.

    Args:
        note: Keeps their records, in place of those of the last time.
    """

    def __init__(self, note: Callable[[Sequence[UsageRecord]], Awaitable[None]]) -> None:
        self._note = note
        self._open: dict[Meter, FrontEndAnswer] = {}

    @contextlib.contextmanager
    def holding(self, meter: Meter, answer: FrontEndAnswer) -> Iterator[None]:
        """Counts a request among those that run, until its record is made."""
        self._open[meter] = answer
        try:
            yield
        finally:
            del self._open[meter]

    async def run(self) -> None:
        """Writes regularly, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.write()

    async def write(self) -> None:
        """Writes down how things stand now."""
        records = []
        for i, (meter, answer) in enumerate(list(self._open.items()), 1):
            record = meter.record_so_far(answer.status) if meter in self._open else None
            if record is not None:
                records.append(record)
            if i % _AT_ONCE == 0:
                await asyncio.sleep(0)
        await self._note(records)
