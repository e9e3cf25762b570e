"""What is kept over a death, what others may see, and the audit."""

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.messages import EngineId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_audit import Admitted, Charged, Ended, Record, replay
from serve_app.policy.fairness_options import (
    UNITS,
    MovingAverage,
)
from serve_app.policy.turns import Fit
from tests.support.batch_engine import BatchEngine, always, make_request
from tests.support.fair_runs import A, B, C, fresh, histories


@settings(max_examples=30, deadline=None)
@given(histories, histories, st.booleans())
def test_snapshot_restores_all(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], predicts: bool
) -> None:
    engine = BatchEngine(Vtc(predictor=fresh(predicts)))
    for tenant, prompt, output in before:
        engine.send(tenant, prompt, output + 1)
        engine.step()
    queue = engine.order
    assert isinstance(queue, Vtc)
    twin = BatchEngine(Vtc(predictor=fresh(predicts)), n_sent=engine.n_sent)
    assert isinstance(twin.order, Vtc)
    twin.order.restore(queue.snapshot())
    twin.lengths, twin.running = dict(engine.lengths), dict(engine.running)
    twin.produced = engine.produced.copy()
    twin.service = engine.service.copy()
    for tenant, prompt, output in after:
        for one in (engine, twin):
            one.send(tenant, prompt, output + 1)
        assert engine.step() == twin.step()
        assert list(engine.running) == list(twin.running)
    assert engine.service == twin.service


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.booleans())
def test_adopted_tickets_pay_what_the_snapshot_did_not_know(
    known: int, since: int, predicts: bool
) -> None:
    first = Vtc(predictor=fresh(predicts))
    running, waiting_ = make_request("r", "a"), make_request("w", "b")
    first.arrive(running, 0.0)
    first.admit(always, 0.0)
    first.charge(running.ticket, known)
    first.arrive(waiting_, 0.0)
    second = Vtc(predictor=fresh(predicts))
    second.restore(first.snapshot())
    for request in (running, waiting_, make_request("unknown", "c")):
        second.adopt(request, known + since, 1.0)
        second.adopt(request, known + since, 1.0)
    counters = second.counters()
    lift = min(counters[B], counters[C]) - (10 + 2 * (known + since)) * UNITS
    assert counters[A] == (10 + 2 * (known + since)) * UNITS
    assert lift >= 0
    assert len(second) == 0


def test_metrics_name_gap_and_lags_of_those_who_wait() -> None:
    queue = Vtc()
    for n, tenant in enumerate(["a", "b", "a", "b", "c"]):
        queue.arrive(make_request(str(n), tenant, 10 * (n + 1)), 0.0)
    queue.admit(always, 0.0)
    queue.admit(always, 0.0)
    assert queue.find_gap() == 20.0
    assert queue.find_lags() == {"c": 20.0, "a": 10.0, "b": 0.0}
    assert list(queue.find_lags(1)) == ["c"]


def make_log() -> list[Record]:
    records: list[Record] = []
    engine = BatchEngine(Vtc(predictor=MovingAverage(), audit=records.append), seats=3)
    for n in range(12):
        engine.send("ab"[n % 2], 3 + n, 4)
    engine.run(30)
    return records


def test_replay_accepts_what_the_queue_did() -> None:
    assert replay(make_log()) == []


def test_replay_finds_a_turn_out_of_order() -> None:
    log = make_log()
    turns = [i for i, r in enumerate(log) if isinstance(r, Admitted)]
    first, last = log[turns[0]], log[turns[-1]]
    log[turns[0]], log[turns[-1]] = last, first
    assert any("admitted before" in text for text in replay(log))


def test_replay_finds_a_double_charge() -> None:
    log = make_log()
    i = next(i for i, r in enumerate(log) if isinstance(r, Charged))
    assert any("counter of" in text for text in replay([*log[: i + 1], log[i], *log[i + 1 :]]))


def test_replay_finds_a_ticket_that_ends_twice() -> None:
    log = make_log()
    end = next(r for r in log if isinstance(r, Ended))
    assert any("has ended" in text for text in replay([*log, end]))


def test_skipped_lanes_are_recorded_and_cost_nothing() -> None:
    records: list[Record] = []
    queue = Vtc(audit=records.append)
    queue.arrive(make_request("1", "a", lane="full"), 0.0)
    queue.arrive(make_request("2", "b", lane="free"), 0.0)
    admission = queue.admit(
        lambda request: Fit(EngineId("e")) if request.lane == "free" else None, 0.0
    )
    assert admission is not None
    assert admission.request.tenant == B
    assert queue.counters()[A] == 0
    assert isinstance(records[-1], Admitted)
    assert records[-1].refused_lanes == ["full"]
