"""vLLM's waiting queue in fair order, with the calls in the order in which vLLM makes them."""

import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request, RequestStatus

from deployments.fair_scheduler import FairQueue, FairScheduler
from serve_app.messages import Standing
from serve_app.names import TenantId

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Step:
    """One engine's queue; `counters` are the router's, charges included."""

    def __init__(self, **counters: int) -> None:
        self.queue = FairQueue()
        self.counters = dict(counters)

    def send(self, name: str, tenant: str, charged: int = 10) -> Request:
        self.counters[tenant] += charged
        standing = Standing(TenantId(tenant), 0, self.counters[tenant], charged)
        request = Request(name, [1, 2, 3], SamplingParams(max_tokens=4), None)
        self.queue.introduce(name, standing)
        self.queue.add_request(request)
        return request

    def start(self) -> str:
        """As `schedule` does with a request that fits."""
        request = self.queue.peek_request()
        assert self.queue.pop_request() is request
        request.status = RequestStatus.RUNNING
        return request.request_id

    def skip(self) -> Request:
        """As `schedule` does with one that cannot run in this step."""
        request = self.queue.peek_request()
        assert self.queue.pop_request() is request
        return request

    def preempt(self, request: Request) -> None:
        request.status = RequestStatus.PREEMPTED
        self.queue.prepend_request(request)

    def names(self) -> list[str]:
        return [request.request_id for request in self.queue]


def test_queue_starts_by_counters_and_not_by_arrival() -> None:
    step = Step(heavy=100, light=0)
    for i in range(3):
        step.send(f"h{i}", "heavy")
    for i in range(2):
        step.send(f"l{i}", "light")
    assert step.names() == ["l0", "l1", "h0", "h1", "h2"]
    assert len(step.queue) == 5
    assert [step.start() for _ in range(5)] == ["l0", "l1", "h0", "h1", "h2"]
    assert not step.queue


def test_each_start_is_charged_before_the_next_is_chosen() -> None:
    step = Step(a=0, b=0)
    for i in range(2):
        step.send(f"a{i}", "a")
        step.send(f"b{i}", "b")
    assert [step.start() for _ in range(4)] == ["a0", "b0", "a1", "b1"]


def test_skipped_requests_are_not_charged_and_wait_where_they_did() -> None:
    step = Step(a=0, b=5)
    step.send("a0", "a")
    step.send("a1", "a")
    step.send("b0", "b")
    skipped = [step.skip(), step.skip()]
    assert [r.request_id for r in skipped] == ["a0", "a1"]
    assert step.start() == "b0"
    step.queue.prepend_requests(reversed(skipped))
    step.queue.settle(is_step_over=True)
    step.send("b1", "b")
    assert step.names() == ["a0", "a1", "b1"]
    assert step.start() == "a0"


def test_preempted_request_goes_first_and_is_not_charged_again() -> None:
    step = Step(a=0, b=0)
    request = step.send("a0", "a", charged=50)
    assert step.start() == "a0"
    step.queue.settle(is_step_over=True)
    step.send("b0", "b")
    step.preempt(request)
    assert step.names() == ["a0", "b0"]
    assert step.start() == "a0"
    step.queue.settle(is_step_over=True)
    step.send("a1", "a", charged=10)
    step.send("b1", "b")
    assert [step.start() for _ in range(3)] == ["b0", "b1", "a1"]


def test_request_that_is_preempted_in_the_step_after_its_start_was_charged() -> None:
    step = Step(a=0, b=0)
    request = step.send("a0", "a", charged=50)
    step.send("b0", "b", charged=1)
    assert step.start() == "a0"
    step.preempt(request)
    assert step.start() == "a0"
    step.send("a1", "a", charged=1)
    assert step.start() == "b0"


def test_router_has_the_last_word_on_counters() -> None:
    step = Step(a=0, b=0)
    step.send("a0", "a")
    step.send("b0", "b")
    step.queue.synchronise({TenantId("a"): 500, TenantId("b"): 20})
    assert step.start() == "b0"


def test_aborted_requests_are_taken_out_wherever_they_are() -> None:
    step = Step(a=0, b=0)
    first, second = step.send("a0", "a"), step.send("b0", "b")
    preempted = step.send("a1", "a")
    step.queue.remove_requests([first, Request("x", [1], SamplingParams(), None)])
    step.queue.forget("a0")
    assert step.names() == ["b0", "a1"] or step.names() == ["a1", "b0"]
    # One that stops while it is preempted is freed before it is taken out.
    step.queue.remove_request(second)
    step.queue.forget("b0")
    assert step.start() == "a1"
    step.preempt(preempted)
    step.queue.forget("a1")
    step.queue.remove_requests([preempted])
    assert len(step.queue) == 0
    with pytest.raises(IndexError):
        step.queue.peek_request()


def test_request_without_a_standing_is_served() -> None:
    step = Step(a=5)
    step.send("a0", "a")
    step.queue.add_request(Request("warm-up", [1], SamplingParams(), None))
    assert sorted([step.start(), step.start()]) == ["a0", "warm-up"]


def test_scheduler_is_vllms_own_but_for_turns() -> None:
    assert issubclass(FairScheduler, AsyncScheduler)
    order = [cls.__name__ for cls in FairScheduler.__mro__[:4]]
    assert order == ["FairScheduler", "FairTurns", "AsyncScheduler", "Scheduler"]


def test_tenant_that_has_got_most_is_preempted_whenever_that_is_asked() -> None:
    step = Step(a=0, b=0)
    running = [step.send("a0", "a", charged=30), step.send("b0", "b", charged=10)]
    running.append(step.send("b1", "b", charged=10))
    for _ in running:
        step.start()
    step.queue.settle(is_step_over=True)

    def victim() -> str:
        """As vLLM chooses it."""
        return max(running, key=lambda r: (r.priority, r.arrival_time)).request_id

    assert victim() == "a0"
    step.queue.synchronise({TenantId("a"): 30, TenantId("b"): 40})
    assert victim() == "b1", "of one tenant's requests, the youngest"
