"""How `bench.autoscale_live` counts engines and judges what happened."""

import threading
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from bench.autoscale_live import (
    RIVALS,
    Served,
    describe_ours,
    draw_shots,
    judge,
    judge_costs,
    step,
)
from bench.load import Answer
from bench.open_load import OpenLoad
from bench.replica_watch import Sample, find_starts_s, sum_engine_s
from bench.sampler import Sampler
from serve_app.config import parse_settings
from serve_app.deployment_names import engine_of

SAMPLES: list[Sample] = [
    (100.0, {"a": "RUNNING"}),
    (102.0, {"a": "RUNNING", "b": "STARTING"}),
    (110.0, {"a": "RUNNING", "b": "RUNNING"}),
    (120.0, {"a": "RUNNING", "b": "STOPPING"}),
    (124.0, {"a": "RUNNING"}),
]


def served(system: str, attainment: float, engine_s: float) -> Served:
    return Served(system, "step", attainment, engine_s, 3, (9.0,), 100, 0, 0)


def test_an_engine_costs_while_it_is_listed_and_only_in_the_time_that_counts() -> None:
    assert sum_engine_s(SAMPLES, 100.0, 130.0) == pytest.approx(30.0 + 22.0)
    assert sum_engine_s(SAMPLES, 105.0, 122.0) == pytest.approx(17.0 + 17.0)


def test_a_start_is_of_replicas_that_came_and_served_meanwhile() -> None:
    assert find_starts_s(SAMPLES) == pytest.approx([9.0])
    # What stops without having served has not started, and a replica starts once.
    more = [*SAMPLES, (126.0, {"a": "RECOVERING", "c": "STARTING"}), (130.0, {"a": "RUNNING"})]
    assert find_starts_s(more) == pytest.approx([9.0])


def test_first_tokens_too_late_and_answers_with_errors_were_not_in_time() -> None:
    answers = (
        Answer(100.0, [101.0], ended_s=105.0),
        Answer(100.0, [103.0], ended_s=105.0),
        Answer(100.0, [101.0], error="cut"),
        Answer(0.0),
    )
    found = judge("ours", "step", OpenLoad(100.0, 30.0, answers, 0), SAMPLES, 30.0)
    assert (found.attainment, found.n_errors, found.most_ready) == (0.25, 1, 2)
    assert found.engine_s == pytest.approx(52.0)


@pytest.mark.parametrize(("attainment", "target"), [(0.95, "<= 0.8"), (0.90, "<= 1"), (0.99, "")])
def test_cost_is_judged_against_rivals_with_as_many_in_time(attainment: float, target: str) -> None:
    figures = judge_costs([served("ours", 0.95, 80.0), served("rival", attainment, 100.0)])
    assert figures["step_cost_over_rival"].target == target
    assert figures["step_cost_over_rival"].value == pytest.approx(0.8)


def test_traces_ask_for_the_demand_that_they_say() -> None:
    shots = draw_shots(step, "http://127.0.0.1:1", 1000.0)
    busy = [shot for shot in shots if 330.0 <= shot.at_s < 720.0]
    assert len(busy) / 390.0 == pytest.approx(2.5, rel=0.1)
    assert (len(shots) - len(busy)) / 610.0 == pytest.approx(0.6, rel=0.15)


@pytest.mark.parametrize("autoscaling", RIVALS.values(), ids=RIVALS)
def test_rivals_are_settings_that_serve_takes(autoscaling: dict[str, Any]) -> None:
    AutoscalingConfig(**autoscaling)


def test_our_side_is_a_file_that_the_platform_takes() -> None:
    (model,) = parse_settings(describe_ours()["args"]).models
    assert engine_of(model.name) == "engine-smollm2-135m"
    assert (model.replicas.min, model.replicas.max) == (1, 4)


def test_what_a_look_raises_is_raised_where_the_samples_are_read() -> None:
    looks, is_over = iter([1, None, 2]), threading.Event()

    def look() -> int | None:
        try:
            return next(looks)
        except StopIteration:
            is_over.set()
            raise

    sampler = Sampler(look, 0.001)
    with pytest.raises(StopIteration), sampler:
        is_over.wait(10.0)
    assert [n for _, n in sampler.samples] == [1, 2]
