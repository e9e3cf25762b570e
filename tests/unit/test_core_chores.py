"""What a core does between steps: in parts while others wait, at once when nobody does."""

import math
import time

import pytest

from deployments.core_chores import Chore, Chores


class Work:
    """A chore of so many parts; notes what time it is given for each."""

    def __init__(self, parts: int) -> None:
        self.left = parts
        self.budgets_s: list[float] = []

    def go_on(self, budget_s: float) -> bool:
        self.budgets_s.append(budget_s)
        time.sleep(0.0 if self.left == 1 else min(budget_s, 0.05))
        self.left = 0 if budget_s == math.inf else self.left - 1
        return self.left <= 0


def test_chore_goes_on_for_a_part_of_each_step() -> None:
    chores, work = Chores(), Work(3)
    chore = Chore(work.go_on)
    chores.add(chore)
    for step in range(3):
        assert not chore.done.done()
        chores.go_on(0.1 * (step + 1), is_busy=True)
    assert chore.done.result() >= 0
    assert work.budgets_s == pytest.approx([0.02, 0.04, 0.06], abs=0.002)
    chores.go_on(0.1, is_busy=True)
    assert len(work.budgets_s) == 3


def test_second_chore_waits_for_the_first() -> None:
    chores, first, second = Chores(), Work(2), Work(1)
    chores.add(Chore(first.go_on))
    chores.add(Chore(second.go_on))
    chores.go_on(0.1, is_busy=True)
    assert (len(first.budgets_s), len(second.budgets_s)) == (1, 0)
    chores.go_on(0.1, is_busy=True)
    assert (len(first.budgets_s), len(second.budgets_s)) == (2, 1), "there was time left"


def test_all_is_done_at_once_where_nobody_waits() -> None:
    chores, works = Chores(), [Work(5), Work(5)]
    done = []
    for work in works:
        chore = Chore(work.go_on)
        done.append(chore.done)
        chores.add(chore)
    chores.go_on(0.1, is_busy=False)
    assert all(future.done() for future in done)


def test_failure_goes_to_who_waits_and_ends_the_chore() -> None:
    def fail(_: float) -> bool:
        raise RuntimeError("no")

    chores, chore, after = Chores(), Chore(fail), Work(1)
    chores.add(chore)
    chores.add(Chore(after.go_on))
    chores.go_on(0.1, is_busy=True)
    with pytest.raises(RuntimeError, match="no"):
        chore.done.result()
    assert after.left == 0
