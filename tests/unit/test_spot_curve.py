"""Cost at equal availability, read off a curve."""

import pytest

from bench.spot_curve import cost_at

POINTS = [(0.99, 0.4), (0.999, 0.6), (0.995, 0.7)]


def test_cost_lies_on_the_line_between_points() -> None:
    assert cost_at(POINTS, 0.9945) == pytest.approx(0.5)


def test_dearer_points_that_are_available_less_do_not_count() -> None:
    assert cost_at(POINTS, 0.999) == pytest.approx(0.6)


def test_less_than_the_cheapest_reaches_costs_as_much() -> None:
    assert cost_at(POINTS, 0.5) == 0.4


def test_more_than_the_best_has_no_cost() -> None:
    assert cost_at(POINTS, 0.9999) is None
