"""How fair a router says it is: in its status and as metrics."""

from typing import Any

import pytest

from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import (
    Counters,
    EngineGone,
    EngineId,
    Leave,
    ModelStatus,
    Progress,
    Resume,
    TicketId,
)
from serve_app.metrics import Metrics
from serve_app.names import ModelName, TenantId
from serve_app.telemetry import (
    COUNTER_LAG,
    ENGINES,
    ENGINES_LOST,
    GRANTS,
    QUEUE_WAIT,
    REFUSALS,
    RUNNING,
    SERVICE_GAP,
    SERVICE_GAP_BOUND,
    WAITING,
    WAITING_LIMIT,
    WANTED_ENGINES,
)
from tests.support.router_post import FakeClock, FakeMailbox, enqueue, report
from tests.support.settings import write_args

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A, ENGINE, TINY = b"gateway-a", b"e1", ModelName("tiny")


def make_router(**sections: Any) -> tuple[Router, FakeMailbox, Metrics]:
    post, metrics = FakeMailbox(), Metrics()
    fairness = {"predicts_lengths": False, "preempts": False}
    settings = parse_settings(write_args(fairness=fairness, **sections))
    router = Router(TINY, settings, post, FakeClock(), metrics=metrics)
    router.handle(A, Resume(model=TINY))
    router.handle(ENGINE, report("e1", max_running=2, model=TINY))
    return router, post, metrics


def let_one_get_ahead(router: Router) -> None:
    """Both tenants wait, `a` has got 50 and `b` 20 since they began."""
    sent = ("1", "other", 5), ("2", "other", 5), ("3", "a", 50), ("4", "b", 20)
    for ticket, tenant, prompt in (*sent, ("5", "a", 5), ("6", "b", 5)):
        router.handle(A, enqueue(ticket, tenant, prompt_tokens=prompt))
    for ticket in "12":
        router.handle(A, Leave(TicketId(ticket), is_finished=True))


def test_router_tells_gap_bound_and_lags_of_those_who_wait() -> None:
    router, post, metrics = make_router()
    let_one_get_ahead(router)
    router.look_around()
    status = [m for m in post.take(A) if isinstance(m, ModelStatus)][-1]
    assert (status.fairness.gap, status.fairness.tenants_waiting) == (30.0, 2)
    assert status.fairness.bound == 2 * 2 * 2 * (50 + 10)
    assert metrics.value(SERVICE_GAP, "tiny") == 30.0
    assert metrics.value(SERVICE_GAP_BOUND, "tiny") == 480.0
    assert metrics.value(COUNTER_LAG, "tiny", "a") == 0.0
    assert metrics.value(COUNTER_LAG, "tiny", "b") == 30.0


def test_bound_counts_what_is_charged_for_other_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it is called a defect that tenants are charged so."""
    monkeypatch.setenv("ARRIERO_CELLS_KEY", "k" * 16)
    cell = {"name": "east", "bank": "http://127.0.0.1:1", "most_ahead": 1000.0}
    router, _, metrics = make_router(cell=cell)
    let_one_get_ahead(router)
    router._queue.charge_elsewhere(TenantId("a"), 1e6, 1000.0)
    router.look_around()
    assert metrics.value(SERVICE_GAP, "tiny") > 480.0
    assert metrics.value(SERVICE_GAP_BOUND, "tiny") == 480.0 + 2 * 1000.0


def test_lag_of_a_tenant_that_waits_no_longer_is_zero() -> None:
    router, _, metrics = make_router()
    let_one_get_ahead(router)
    router.look_around()
    router.handle(A, Resume(model=TINY))
    router.look_around()
    assert metrics.value(COUNTER_LAG, "tiny", "b") == 0.0
    assert metrics.value(SERVICE_GAP, "tiny") == 0.0


def test_router_shows_who_waits_and_runs_and_which_engines_there_are() -> None:
    router, _, metrics = make_router(limits={"max_waiting": 3})
    for ticket, tenant in (("1", "a"), ("2", "a"), ("3", "a"), ("4", "b"), ("5", "b"), ("6", "b")):
        router.handle(A, enqueue(ticket, tenant))
    router.look_around()
    assert metrics.value(RUNNING, "tiny", "a") == 2
    assert metrics.value(WAITING, "tiny", "a") + metrics.value(WAITING, "tiny", "b") == 3
    assert metrics.value(WAITING_LIMIT, "tiny") == 3
    assert metrics.value(REFUSALS, "tiny", "crowded") == 1
    assert metrics.value(GRANTS, "tiny", "room") == 2
    assert metrics.value(QUEUE_WAIT, "a", "tiny") == 2
    assert metrics.value(ENGINES, "tiny", "ready") == 1
    router.handle(A, Resume(model=TINY))
    router.handle(ENGINE, EngineGone(EngineId("e1")))
    router.look_around()
    assert metrics.value(WAITING, "tiny", "a") == metrics.value(RUNNING, "tiny", "a") == 0
    assert metrics.value(ENGINES, "tiny", "ready") == 0
    assert metrics.value(ENGINES_LOST, "tiny", "left") == 1


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


def test_engines_of_a_model_that_never_had_any_can_be_missed() -> None:
    """An alert compares two series: it needs both."""
    post, metrics = FakeMailbox(), Metrics()
    router = Router(TINY, parse_settings(write_args()), post, FakeClock(), metrics=metrics)
    router.look_around()
    assert metrics.value(WANTED_ENGINES, "tiny") == 1
    assert 'arriero_engines{model="tiny",state="ready"} 0.0' in metrics.render()
