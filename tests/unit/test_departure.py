"""Unit tests of `deployments.departure`."""

import asyncio
import time

import pytest

from deployments.departure import Departure


class Leaver:
    """Something that leaves: `n_running` goes to zero when a test says so, or when it moves."""

    def __init__(self, *, moves: bool = True) -> None:
        self.n_running = 1
        self.said: list[str] = []
        self._moves = moves
        self.departure = Departure(
            lambda: self.n_running > 0, lambda: self.said.append("begin"), self._move
        )

    def _move(self) -> None:
        self.said.append("move")
        if self._moves:
            self.n_running = 0


async def test_idle_one_leaves_at_once() -> None:
    leaver = Leaver()
    leaver.n_running = 0
    await asyncio.wait_for(leaver.departure.leave(60.0), 1.0)
    assert leaver.said == ["begin", "move"]


async def test_what_ends_in_time_is_not_moved() -> None:
    leaver = Leaver()
    leaving = asyncio.create_task(leaver.departure.leave(60.0))
    await asyncio.sleep(0.1)
    assert leaver.said == ["begin"]
    leaver.n_running = 0
    await asyncio.wait_for(leaving, 1.0)


async def test_rest_moves_before_the_end() -> None:
    leaver, began_s = Leaver(), time.monotonic()
    await leaver.departure.leave(0.6)
    assert leaver.said == ["begin", "move"]
    assert 0.3 <= time.monotonic() - began_s < 0.6


async def test_shorter_notice_in_the_middle_brings_the_end_forward() -> None:
    leaver, began_s = Leaver(moves=False), time.monotonic()
    first = asyncio.create_task(leaver.departure.leave(60.0))
    await asyncio.sleep(0.05)
    await leaver.departure.leave(0.3)
    await asyncio.wait_for(first, 0.1)
    assert time.monotonic() - began_s == pytest.approx(0.4, abs=0.2)
    assert leaver.said == ["begin", "move"]


async def test_longer_notice_in_the_middle_changes_nothing() -> None:
    leaver, began_s = Leaver(), time.monotonic()
    first = asyncio.create_task(leaver.departure.leave(0.3))
    await asyncio.sleep(0.01)
    await leaver.departure.leave(60.0)
    await first
    assert time.monotonic() - began_s < 0.5
