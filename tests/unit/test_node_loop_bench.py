"""How `bench.node_loop` counts nodes."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from bench.node_loop import Watch
from bench.node_systems import NodeSystem
from cluster.policy.fleet import NodeId


class Looks:
    """Which nodes there are: something else at each look, and in the end none."""

    idle_s = 15.0

    def __init__(self, looks: list[dict[NodeId, float]]) -> None:
        self._looks: Iterator[dict[NodeId, float]] = iter(looks)

    def asked(self) -> dict[NodeId, float]:
        return next(self._looks, {})


class Runs:
    """Actors that run at once."""

    def __init__(self, created_s: float) -> None:
        self._created_s = created_s
        self._ran: list[float] = []

    def add(self, count: int) -> float:
        self._ran = [self._created_s + 8.0] * count
        return self._created_s

    def end(self) -> float:
        return time.time()

    def ran(self) -> list[float]:
        return self._ran


def test_a_node_counts_that_was_asked_for_and_has_ended_since() -> None:
    one, two, created_s = NodeId("loop-1"), NodeId("loop-2"), time.time() - 10.0
    cell = Looks([{one: created_s + 3.0}, {two: created_s + 4.0}])
    system = SimpleNamespace(
        way="ours", cell=cell, actors=Runs(created_s), joined=lambda: {one, two}
    )
    watch = Watch(cast(NodeSystem, system), 1)
    watch.until_asked()
    watch.until_all_run()
    served = watch.served()
    assert served.n_asked == 2
    assert served.asked_s == pytest.approx(3.0)
    assert served.runs_s == pytest.approx(8.0)
    assert served.gone_s == pytest.approx(-15.0, abs=1.0)
