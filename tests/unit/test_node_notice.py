"""Unit tests of `deployments.node_notice`."""

import asyncio
import math
from collections.abc import Mapping

import pytest

from deployments import node_notice
from deployments.node_notice import wait_for_notice

_NOW_S = 1_000.0


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_notice, "_LOOK_EVERY_S", 0.0)


async def wait(*answers: Mapping[str, int] | Exception) -> float:
    """What is heard by this node, `me`, of a head that says these one after the other."""
    left = list(answers)

    def observe() -> Mapping[str, int]:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return await asyncio.wait_for(wait_for_notice("me", observe, lambda: _NOW_S), 5.0)


async def test_notice_says_how_many_seconds_are_left() -> None:
    assert await wait({}, {"other": 1_001_000}, {"me": 1_030_000}) == 30.0


async def test_notice_without_a_deadline_leaves_all_time() -> None:
    assert await wait({"me": 0}) == math.inf


async def test_deadline_in_the_past_leaves_no_time() -> None:
    assert await wait({"me": 1_000}) == 0.0


async def test_head_that_is_away_is_asked_again() -> None:
    assert await wait(ConnectionError("away"), {"me": 1_002_000}) == 2.0
