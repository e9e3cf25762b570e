"""How fair a router says it is: in its status and as metrics."""

from collections.abc import Mapping

import pytest

from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import Counters, EngineId, Leave, ModelStatus, Progress, Resume, TicketId
from serve_app.names import ModelName
from serve_app.telemetry import COUNTER_LAG, SERVICE_GAP, SERVICE_GAP_BOUND, Gauge, TenantLabels
from tests.support.router_post import FakeClock, FakeMailbox, enqueue, report
from tests.support.settings import write_args

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A, ENGINE = b"gateway-a", b"e1"


class FakeRecorder:
    """Keeps the last value by gauge and labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
        assert set(labels) == set(gauge.labels)
        assert labels["domain"] == "tiny"
        self.values[gauge.name, labels.get("tenant", "")] = value


def make_router() -> tuple[Router, FakeMailbox, FakeRecorder]:
    post, recorder = FakeMailbox(), FakeRecorder()
    settings = parse_settings(write_args(fairness={"predicts_lengths": False, "preempts": False}))
    router = Router(ModelName("tiny"), settings, post, FakeClock(), recorder=recorder)
    router.handle(A, Resume())
    router.handle(ENGINE, report("e1", max_running=2))
    return router, post, recorder


def let_one_get_ahead(router: Router) -> None:
    """Both tenants wait, `a` has got 50 and `b` 20 since they began."""
    sent = ("1", "other", 5), ("2", "other", 5), ("3", "a", 50), ("4", "b", 20)
    for ticket, tenant, prompt in (*sent, ("5", "a", 5), ("6", "b", 5)):
        router.handle(A, enqueue(ticket, tenant, prompt_tokens=prompt))
    for ticket in "12":
        router.handle(A, Leave(TicketId(ticket), is_finished=True))


def test_router_tells_gap_bound_and_lags_of_those_who_wait() -> None:
    router, post, recorder = make_router()
    let_one_get_ahead(router)
    router.look_around()
    status = [m for m in post.take(A) if isinstance(m, ModelStatus)][-1]
    assert (status.fairness.gap, status.fairness.tenants_waiting) == (30.0, 2)
    assert status.fairness.bound == 2 * 2 * 2 * (50 + 10)
    assert recorder.values == {
        (SERVICE_GAP.name, ""): 30.0,
        (SERVICE_GAP_BOUND.name, ""): 480.0,
        (COUNTER_LAG.name, "a"): 0.0,
        (COUNTER_LAG.name, "b"): 30.0,
    }


def test_lag_of_a_tenant_that_waits_no_longer_is_zero() -> None:
    router, _, recorder = make_router()
    let_one_get_ahead(router)
    router.look_around()
    router.handle(A, Resume())
    router.look_around()
    assert recorder.values[COUNTER_LAG.name, "b"] == 0.0
    assert recorder.values[SERVICE_GAP.name, ""] == 0.0


def test_tenants_beyond_the_limit_share_a_label() -> None:
    labels = TenantLabels(limit=2)
    assert [labels.of(t) for t in "abcab"] == ["a", "b", TenantLabels.OTHERS, "a", "b"]


def test_engine_is_told_the_counters_of_whom_it_serves() -> None:
    router, post, _ = make_router()
    for ticket, tenant in (("1", "a"), ("2", "b"), ("3", "c")):
        router.handle(A, enqueue(ticket, tenant, prompt_tokens=10))
    router.handle(ENGINE, Progress({TicketId("1"): 3}))
    (told,) = post.take(ENGINE)
    assert isinstance(told, Counters)
    assert told.counters == {"a": 16_000_000, "b": 20_000_000}
    router.handle(b"unknown", Progress({TicketId("1"): 1}))
    assert post.take(EngineId("unknown").encode()) == []
