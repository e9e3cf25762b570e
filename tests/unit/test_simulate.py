import random

import numpy as np
import pytest

from bench.sim_engine import EngineModel, SimRequest
from bench.sim_metrics import list_ticks, rate_demand, rate_service
from bench.simulate import simulate
from bench.simulation import GapArrays, Platform, measure_capacity
from bench.workloads import Workload, fixed, name_tenant
from serve_app.names import TenantId
from serve_app.policy.fairness_bound import GapMeter

SMALL = Workload("small", fixed(1.5, 3), duration_s=120.0)
PLATFORM = Platform(EngineModel(kv_tokens=4000))


def test_default_engine_has_the_papers_capacity() -> None:
    assert measure_capacity(EngineModel(), 256, 256) == pytest.approx(1.744, rel=0.01)


def test_runs_are_the_same_for_the_same_seed() -> None:
    results = [simulate(SMALL, "vtc+mean", PLATFORM, 1)[0] for _ in range(2)]
    assert results[0].d_avg == results[1].d_avg
    assert results[0].gap_ratio == results[1].gap_ratio


def test_fair_order_is_fair_and_first_come_is_not() -> None:
    fair, _ = simulate(SMALL, "vtc", PLATFORM, 1)
    unfair, _ = simulate(SMALL, "fcfs", PLATFORM, 1)
    assert fair.is_within_bound
    assert fair.d_avg < unfair.d_avg / 5
    assert fair.throughput == pytest.approx(unfair.throughput, rel=0.01)


@pytest.mark.parametrize("engines", [1, 3])
@pytest.mark.parametrize("gateways", [1, 4])
def test_gap_is_within_bound_when_tokens_are_reported_late(engines: int, gateways: int) -> None:
    platform = Platform(
        EngineModel(kv_tokens=2000), engines, gateways, window=6, charge_every_s=0.5
    )
    result, run = simulate(SMALL, "vtc", platform, 1)
    assert run.uncharged_tokens > 0
    assert result.is_within_bound


def test_service_and_demand_add_up_to_what_was_sent() -> None:
    request = SimRequest(45.0, TenantId("a"), 100, 50, 50)
    workload = Workload("one", lambda *_: [request], duration_s=120.0)
    _, run = simulate(workload, "fcfs", PLATFORM, 1)
    ticks_s = list_ticks(120.0)
    assert ticks_s == [30.0, 60.0, 90.0]
    assert rate_demand(run, request.tenant, ticks_s) == pytest.approx([200 / 60, 200 / 60, 0])
    assert rate_service(run, request.tenant, ticks_s) == pytest.approx([200 / 60, 200 / 60, 0])


def test_array_meter_agrees_with_the_plain_one() -> None:
    rng = random.Random(1)
    tenants = [name_tenant(i) for i in range(1, 5)]
    meter, arrays = GapMeter(), GapArrays(4)
    service = np.zeros(4)
    for _ in range(300):
        service = service + [rng.randrange(5) for _ in tenants]
        waits = np.array([rng.random() < 0.9 for _ in tenants])
        meter.observe(
            dict(zip(tenants, service, strict=True)),
            {t for t, is_waiting in zip(tenants, waits, strict=True) if is_waiting},
        )
        arrays.observe(service, waits)
    assert arrays.worst == meter.worst > 0
