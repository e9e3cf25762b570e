"""An open-loop load: requests leave when they are due, whether or not earlier ones were answered.

Shares its connections and its reading of answers with the closed loop of `bench.load`.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load import Answer, Ask, Connection

_LATE_S = 0.25
"""A client that is so late is short of processor, and what it measures is itself."""


@dataclass(frozen=True)
class Shot:
    """One request that is due.

    Args:
        at_s: When, from the start.
        base_url: Where.
        ask: What.
        drops_after_s: When the client hangs up; None waits for the end.
    """

    at_s: float
    base_url: str
    ask: Ask
    drops_after_s: float | None = None


@dataclass(frozen=True)
class OpenLoad:
    """What became of the shots, in their order. An answer without an end was cut off by the end."""

    started_s: float
    wall_s: float
    answers: tuple[Answer, ...]
    n_late: int
    """Requests that left a quarter of a second or more after they were due."""

    @property
    def errors(self) -> list[str]:
        """What went wrong, in words of the client or the server."""
        return [answer.error for answer in self.answers if answer.error]


class _Gun:
    """Fires shots over connections that are kept and used again."""

    def __init__(self) -> None:
        self._idle: defaultdict[str, list[Connection]] = defaultdict(list)

    async def fire(self, shot: Shot, answer: Answer) -> None:
        idle = self._idle[shot.base_url]
        connection = idle.pop() if idle else Connection(shot.base_url)
        is_clean = False
        try:
            async with asyncio.timeout(shot.drops_after_s):
                await connection.ask(shot.ask, answer)
            is_clean = True
        except TimeoutError:
            answer.left_s = time.monotonic()
        finally:
            if is_clean:
                idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.close()


async def run_open(shots: Sequence[Shot], until_s: float) -> OpenLoad:
    """Fires every shot when it is due, and hangs up on what has no end by `until_s`."""
    gun, n_late = _Gun(), 0
    answers = [Answer(0.0) for _ in shots]
    tasks: list[asyncio.Task[None]] = []
    started_s = time.monotonic()
    for shot, answer in zip(shots, answers, strict=True):
        wait_s = started_s + shot.at_s - time.monotonic()
        n_late += wait_s < -_LATE_S
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(gun.fire(shot, answer)))
    await asyncio.sleep(max(0.0, started_s + until_s - time.monotonic()))
    wall_s = time.monotonic() - started_s
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gun.close()
    return OpenLoad(started_s, wall_s, tuple(answers), n_late)
