"""How `bench.overload` judges what happened."""

import pytest

from bench.load import Answer
from bench.overload import _normal_after_s, _truth


def answered(sent_s: float, ttft_s: float) -> Answer:
    return Answer(sent_s, [sent_s + ttft_s], ended_s=sent_s + ttft_s + 1.0)


def refused(sent_s: float, wait_s: float) -> Answer:
    text = f"status 503: this one's turn would come in {wait_s:.1f} s, and"
    return Answer(sent_s, ended_s=sent_s + 0.01, error=text)


def test_latency_is_normal_after_the_last_window_that_was_not() -> None:
    late = [answered(1000.0 + i, 9.0 - i) for i in range(8)]
    fine = [answered(1008.0 + i, 0.1) for i in range(20)]
    assert _normal_after_s(late + fine, 1000.0, 0.1) == pytest.approx(10.0)
    assert _normal_after_s(fine, 1000.0, 0.1) == 0.0


def test_refusals_are_true_when_they_tell_the_wait_that_others_had() -> None:
    admitted = [answered(1000.0 + i, 10.0) for i in range(10)]
    assert _truth([refused(1001.0, 10.0)], admitted) == pytest.approx(1.0)
    assert _truth([refused(1001.0, 40.0)], admitted) == pytest.approx(0.25)
    assert _truth([], admitted) is None
