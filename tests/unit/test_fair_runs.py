import pytest

from bench.fair_runs import Target, make_run
from bench.load import Answer
from bench.open_load import OpenLoad
from bench.sim_engine import SimRequest
from serve_app.names import TenantId

A, B = TenantId("a"), TenantId("b")
STARTED_S = 100.0


def request(tenant: TenantId, at_s: float = 0.0) -> SimRequest:
    return SimRequest(at_s, tenant, 10, 4, 4)


def answer(*arrivals_s: float, ended_s: float = 0.0, left_s: float = 0.0) -> Answer:
    """An answer with times from the start; tokens as many as arrivals."""
    found = Answer(STARTED_S, [STARTED_S + at_s for at_s in arrivals_s], len(arrivals_s))
    if ended_s:
        found.ended_s, found.completion_tokens = STARTED_S + ended_s, 4
    if left_s:
        found.left_s = STARTED_S + left_s
    return found


def load(*answers: Answer) -> OpenLoad:
    return OpenLoad(STARTED_S, 10.0, answers, 0)


def test_run_is_in_the_papers_seconds() -> None:
    answers = load(answer(1.0, 2.0, ended_s=2.5))
    run = make_run([request(A, 5.0)], answers, speed=10.0, until_s=100.0, weights={})
    (job,) = run.jobs
    assert job.request.arrival_s == 5.0
    assert job.first_token_s == pytest.approx(10.0)
    assert job.end_s == pytest.approx(25.0)
    assert job.produced == 4


def test_answer_that_was_cut_off_counts_what_came() -> None:
    answers = load(answer(1.0, 2.0, 3.0), answer(1.0, 2.0, left_s=4.0), answer())
    run = make_run([request(A)] * 3, answers, speed=1.0, until_s=10.0, weights={})
    assert [job.produced for job in run.jobs] == [3, 2, 0]
    assert [job.end_s for job in run.jobs] == [None, pytest.approx(4.0), None]
    assert run.jobs[2].first_token_s is None


def test_gap_is_that_of_tenants_that_wait() -> None:
    # Both wait from 0 on; `a` gets its prompt and 4 tokens, then its last request begins at 5.
    answers = load(answer(1.0, 2.0, 3.0, 4.0, ended_s=4.0), answer(5.0), answer(6.0))
    run = make_run([request(A), request(A), request(B)], answers, 1.0, 10.0, {})
    assert run.gap == pytest.approx(10 + 2 * 4)
    weighted = make_run([request(A), request(A), request(B)], answers, 1.0, 10.0, {A: 2.0})
    assert weighted.gap == pytest.approx((10 + 2 * 4) / 2)


def test_tenant_waits_for_certain_when_more_wait_than_engines_hold() -> None:
    # Four of `a` and one of `b` begin late; the engines hold three.
    answers = load(answer(1.0, 2.0, ended_s=2.0), *[answer(9.0)] * 4, answer(9.5))
    requests = [request(A)] * 5 + [request(B)]
    assert make_run(requests, answers, 1.0, 10.0, {}, handed=0).gap > 0
    assert make_run(requests, answers, 1.0, 10.0, {}, handed=3).gap == 0


def test_no_gap_where_one_does_not_wait() -> None:
    answers = load(answer(1.0, 2.0, 3.0, 4.0, ended_s=4.0), answer(5.0))
    assert make_run([request(A), request(B, 4.5)], answers, 1.0, 10.0, {}).gap == 0.0


def test_bound_grows_with_engines_and_least_weight() -> None:
    target = Target((), "m", {}, speed=10.0)
    requests = [request(A)]
    bound = target.bound(requests, {})
    assert bound > 2 * 2 * 20 * 14
    assert target.bound(requests, {A: 4.0, B: 0.5}) == 2 * bound
