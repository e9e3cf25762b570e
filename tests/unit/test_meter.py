"""What one HTTP request reserves, uses and is recorded with."""

import asyncio
import re
import time
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine import EngineCoreOutput

from serve_app import telemetry
from serve_app.catalog import Catalog
from serve_app.config_limits import PriceSpec
from serve_app.config_tenants import DeclaredTenant
from serve_app.errors import OverloadedError
from serve_app.gateway.gateway_metrics import GatewayMetrics
from serve_app.gateway.ledger_client import LedgerClient, ReadUsage
from serve_app.gateway.meter import Generation, Meter
from serve_app.gateway.timings import RequestClock
from serve_app.ledger_messages import Granted, LeaseId, Refused, Reserve, Standing, Usage
from serve_app.messages import Endpoint
from serve_app.metrics import Metrics
from serve_app.names import ModelName
from serve_app.telemetry import (
    COMPLETION_TOKENS,
    COST,
    DURATION,
    PROMPT_TOKENS,
    REQUESTS,
    TTFT,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PRICE = PriceSpec(usd_per_million_prompt_tokens=1.0, usd_per_million_completion_tokens=10.0)


class FakeLedger(LedgerClient):
    """Grants everything, or what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(self._find_none, b"gateway", 10.0, 30.0)
        self.asks: list[Reserve] = []
        self.settled: dict[LeaseId, Usage | None] = {}
        self.refusal: str | None = None
        self.is_away = False

    async def _find_none(self) -> Endpoint:
        raise ConnectionError

    async def reserve(self, ask: Reserve, read_usage: ReadUsage) -> Granted | Refused:
        """Answers at once."""
        await asyncio.sleep(0)
        self.asks.append(ask)
        if self.is_away:
            raise OverloadedError("It is away.", 5.0)
        if self.refusal is not None:
            return Refused(ask.lease, self.refusal, "tenant 'a'", 1, 1, 1, 2.5, Standing())
        return Granted(ask.lease, Standing(), 50)

    def settle(self, lease: LeaseId, usage: Usage | None) -> None:
        """Remembers it."""
        assert lease not in self.settled
        self.settled[lease] = usage


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


def make_meter(ledger: FakeLedger, **terms: Any) -> Meter:
    telemetry.request_id.set("req-1")
    tenant = DeclaredTenant.model_validate({"id": "anonymous", **terms})
    meter = Meter(Catalog([tenant]).anonymous(), ledger, None)
    meter.begin(ModelName("llama"), PRICE, is_max_tokens_given=True)
    return meter


def limit(ledger: FakeLedger) -> Meter:
    return make_meter(ledger, limits={"requests_per_min": 5})


def produce(generation: Generation, n_tokens: int) -> None:
    generation.request_ids.append("engine-request")
    generation.take(EngineCoreOutput("engine-request", [1] * n_tokens))


async def test_ledger_is_not_asked_where_nothing_is_limited(ledger: FakeLedger) -> None:
    meter = make_meter(ledger)
    generation = meter.plan("a", 10, (20,))
    assert await generation.admit() is None
    produce(generation, 3)
    record = meter.close("finished", 200)
    assert record is not None
    assert (record.prompt_tokens, record.completion_tokens) == (10, 3)
    assert not ledger.asks


async def test_prompts_of_a_request_are_one_reservation_settled_once(ledger: FakeLedger) -> None:
    meter = limit(ledger)
    first, second = meter.plan("a", 10, (20, 20)), meter.plan("b", 7, (30,))
    assert list(await asyncio.gather(first.admit(), second.admit())) == [50, 50]
    (ask,) = ledger.asks
    assert (ask.requests, ask.prompt_tokens, ask.max_tokens) == (1, 17, (20, 20, 30))
    produce(first, 4)
    first.end()
    assert not ledger.settled
    produce(second, 5)
    second.end()
    second.end()
    assert ledger.settled == {ask.lease: Usage(17, 9)}


async def test_later_turn_reserves_again_and_is_no_other_request(ledger: FakeLedger) -> None:
    meter = limit(ledger)
    for name in ("a", "b"):
        generation = meter.plan(name, 10, (20,))
        await generation.admit()
        produce(generation, 2)
        generation.end()
    assert [ask.requests for ask in ledger.asks] == [1, 0]
    assert list(ledger.settled.values()) == [Usage(10, 2), Usage(10, 2)]


async def test_record_says_and_costs_what_was_settled(ledger: FakeLedger) -> None:
    meter = limit(ledger)
    generation = meter.plan("a", 10, (20,))
    await generation.admit()
    produce(generation, 4)
    generation.is_started = True
    generation.end()
    record = meter.close("cancelled", 200)
    assert record is not None
    assert (record.prompt_tokens, record.completion_tokens, record.outcome) == (10, 4, "cancelled")
    assert record.cost_usd == pytest.approx(10e-6 + 40e-6)
    assert list(ledger.settled.values()) == [Usage(10, 4)]


async def test_refused_request_is_recorded_without_use_and_not_settled(ledger: FakeLedger) -> None:
    ledger.refusal = "requests_per_min"
    meter = limit(ledger)
    generation = meter.plan("a", 10, (20,))
    with pytest.raises(GracefulHTTPError):
        await generation.admit()
    generation.end()
    assert meter.failure is not None
    assert (meter.failure.status, meter.failure.retry_after_s) == (429, 2.5)
    record = meter.close("failed", 429)
    assert record is not None
    assert (record.outcome, record.status, record.prompt_tokens) == ("refused", 429, 0)
    assert record.cost_usd == 0.0
    assert not ledger.settled


async def test_ledger_that_is_away_is_503(ledger: FakeLedger) -> None:
    ledger.is_away = True
    meter = limit(ledger)
    with pytest.raises(GracefulHTTPError):
        await meter.plan("a", 10, (20,)).admit()
    assert meter.failure is not None
    assert (meter.failure.status, meter.failure.retry_after_s) == (503, 5.0)


async def test_what_the_platform_would_not_serve_is_given_back(ledger: FakeLedger) -> None:
    meter = limit(ledger)
    generation = meter.plan("a", 10, (20,))
    await generation.admit()
    generation.request_ids.append("waits")
    meter.is_refused = True  # A full queue, say.
    generation.end()
    assert list(ledger.settled.values()) == [None]
    record = meter.close("failed", 503)
    assert record is not None
    assert (record.outcome, record.completion_tokens) == ("refused", 0)


async def test_what_needs_no_engine_is_not_recorded(ledger: FakeLedger) -> None:
    assert make_meter(ledger).close("finished", 200) is None


async def test_request_that_its_client_withdraws_from_the_queue_counts_without_tokens(
    ledger: FakeLedger,
) -> None:
    meter = limit(ledger)
    generation = meter.plan("a", 10, (20,))
    await generation.admit()
    generation.request_ids.append("waits")
    generation.end()
    assert list(ledger.settled.values()) == [Usage(0, 0)]
    record = meter.close("cancelled", 200)
    assert record is not None
    assert (record.prompt_tokens, record.completion_tokens) == (0, 0)


async def test_prompt_that_never_began_does_not_keep_its_turn_open(ledger: FakeLedger) -> None:
    meter = limit(ledger)
    first, _ = meter.plan("a", 10, (20,)), meter.plan("b", 10, (20,))
    first.is_started = True
    await first.admit()
    produce(first, 1)
    first.end()
    assert not ledger.settled
    meter.close("cancelled", 200)
    assert list(ledger.settled.values()) == [Usage(10, 1)]


async def test_a_request_is_counted_once_with_what_it_used(ledger: FakeLedger) -> None:
    metrics = Metrics()
    tenant = DeclaredTenant.model_validate({"id": "anonymous"})
    meter = Meter(Catalog([tenant]).anonymous(), ledger, None, GatewayMetrics(metrics))
    meter.begin(ModelName("llama"), PRICE, is_max_tokens_given=True, adapter="llama:x")
    generation = meter.plan("a", 10, (20,))
    produce(generation, 3)
    produce(generation, 2)
    meter.close("finished", 200)
    meter.count()
    whose = ("anonymous", "llama", "llama:x")
    assert metrics.value(REQUESTS, *whose, "finished") == 1
    assert metrics.value(PROMPT_TOKENS, *whose) == 10
    assert metrics.value(COMPLETION_TOKENS, *whose) == 5
    assert metrics.value(TTFT, "anonymous", "llama") == 1
    assert metrics.value(DURATION, "anonymous", "llama") == 1
    assert metrics.value(COST, "anonymous", "llama") == pytest.approx(60e-6)


async def test_times_are_from_arrival_whatever_the_clock_on_the_wall_does(
    ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative time would make a histogram's sum fall, as if its process had started anew."""
    metrics = Metrics()
    tenant = DeclaredTenant.model_validate({"id": "anonymous"})
    meter = Meter(Catalog([tenant]).anonymous(), ledger, None, GatewayMetrics(metrics))
    meter.clock = RequestClock(time.monotonic() - 2.0)  # It arrived before its key was looked up.
    meter.begin(ModelName("llama"), PRICE, is_max_tokens_given=True)
    set_back_s = time.time() - 3600.0
    monkeypatch.setattr(time, "time", lambda: set_back_s)
    produce(meter.plan("a", 10, (20,)), 3)
    meter.close("finished", 200)
    meter.count()
    for metric in (TTFT, DURATION):
        (sum_,) = re.findall(rf"{metric.name}_sum{{.*}} (.*)", metrics.render())
        assert 2.0 <= float(sum_) < 60.0


@pytest.mark.parametrize(("is_gone", "outcome"), [(False, "refused"), (True, "cancelled")])
async def test_a_request_that_never_began_is_counted_too(
    ledger: FakeLedger, is_gone: bool, outcome: str
) -> None:
    metrics = Metrics()
    tenant = DeclaredTenant.model_validate({"id": "anonymous"})
    meter = Meter(Catalog([tenant]).anonymous(), ledger, None, GatewayMetrics(metrics))
    meter.count(is_gone=is_gone)
    assert metrics.value(REQUESTS, "anonymous", "", "", outcome) == 1
    assert metrics.value(DURATION, "anonymous", "") == 0
