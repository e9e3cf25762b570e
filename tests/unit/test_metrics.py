"""Series, their bounds, and how Prometheus is shown them."""

import asyncio
import random
import threading
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.config_metrics import MetricsSettings
from serve_app.gateway.gateway_metrics import GatewayMetrics
from serve_app.metrics import BoundedNames, Metrics
from serve_app.metrics_book import MetricsTarget, as_discovery
from serve_app.metrics_reference import UNITS, main, unit_of
from serve_app.metrics_server import MetricsServer
from serve_app.names import ModelName, TenantId
from serve_app.telemetry import (
    COMPLETION_TOKENS,
    INTER_TOKEN,
    MODEL_READY,
    REQUESTS,
    TABLE,
    TTFT,
    UNSTORED_RECORDS,
    Metric,
)


def test_rendering_is_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.counter(REQUESTS, 'a"\\\n', "m", "", "finished").add()
    metrics.gauge(UNSTORED_RECORDS).set(2.5)
    ttft = metrics.histogram(TTFT, "a", "m")
    for value in (0.3, 0.4, 1000.0):
        ttft.observe(value)
    families = {f.name: f for f in text_string_to_metric_families(metrics.render())}
    (sample,) = families["arriero_requests"].samples
    assert (sample.labels["tenant"], sample.value) == ('a"\\\n', 1.0)
    assert families[UNSTORED_RECORDS.name].samples[0].value == 2.5
    samples = families[TTFT.name].samples
    buckets = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    assert (buckets["0.2"], buckets["0.4"], buckets["160"], buckets["+Inf"]) == (0, 2, 2, 3)
    assert {s.name[len(TTFT.name) :]: s.value for s in samples if "le" not in s.labels} == {
        "_count": 3,
        "_sum": 1000.7,
    }


def test_a_gauge_takes_a_truth_for_a_number() -> None:
    metrics = Metrics()
    metrics.gauge(MODEL_READY, "m").set(True)
    assert 'arriero_model_ready{model="m"} 1.0' in metrics.render()


def test_a_model_that_is_served_no_more_is_not_waited_for() -> None:
    metrics = Metrics()
    gateway = GatewayMetrics(metrics)
    old, kept = ModelName("old"), ModelName("kept")
    gateway.show({old: False, kept: True}, 0, 0)
    gateway.show({kept: False}, 0, 0)
    assert [line for line in metrics.render().splitlines() if "model_ready{" in line] == [
        'arriero_model_ready{model="kept"} 0.0'
    ]
    gateway.show({old: True, kept: True}, 0, 0)
    assert metrics.value(MODEL_READY, old) == metrics.value(MODEL_READY, kept) == 1


def test_failures_are_counted_from_none() -> None:
    """Else Prometheus would not see a tenant's first failure."""
    metrics = Metrics()
    GatewayMetrics(metrics).of(TenantId("a"), "m", "").end("finished", None)
    labels = 'tenant="a",model="m",adapter=""'
    assert f'arriero_requests_total{{{labels},outcome="failed"}} 0.0' in metrics.render()


def test_a_value_observed_many_times_counts_as_often() -> None:
    metrics = Metrics()
    metrics.histogram(INTER_TOKEN, "a", "m").observe(0.5, 4)
    assert metrics.value(INTER_TOKEN, "a", "m") == 4
    assert 'inter_token_seconds_sum{tenant="a",model="m"} 2.0' in metrics.render()


def test_every_value_is_in_its_bucket_whenever_one_looks() -> None:
    metrics, rng = Metrics(), random.Random(7)
    histogram = metrics.histogram(TTFT, "a", "m")
    values: list[float] = []
    for n in range(1, 500):
        value = rng.choice([*TTFT.buckets, rng.expovariate(1.0)])
        values.append(value)
        histogram.observe(value)
        if n % 31 == 0:
            shown = {label or suffix: count for suffix, label, count in histogram.samples()}
            for bound in TTFT.buckets:
                assert shown[f'le="{bound:g}"'] == sum(v <= bound for v in values)
            assert shown["_count"] == shown['le="+Inf"'] == n
            assert shown["_sum"] == pytest.approx(sum(values))


def test_who_looks_while_another_thread_measures_sees_each_value_once() -> None:
    histogram = Metrics().histogram(TTFT, "a", "m")
    n_values, counts = 20_000, []

    def measure() -> None:
        for _ in range(n_values):
            histogram.observe(0.5)

    writer = threading.Thread(target=measure)
    writer.start()
    while writer.is_alive():
        counts.append({suffix: value for suffix, _, value in histogram.samples()})
    writer.join()
    shown = {suffix: value for suffix, _, value in histogram.samples()}
    assert (shown["_count"], shown["_sum"]) == (n_values, n_values / 2)
    assert all(seen["_sum"] == seen["_count"] / 2 for seen in counts)
    assert [seen["_count"] for seen in counts] == sorted(seen["_count"] for seen in counts)


def test_names_beyond_the_limit_share_one_series() -> None:
    metrics = Metrics(MetricsSettings(max_tenants=2, max_adapters=1))
    for tenant, adapter in (("a", "m:x"), ("b", ""), ("c", "m:y"), ("d", "m:z"), ("a", "m:y")):
        metrics.counter(COMPLETION_TOKENS, tenant, "m", adapter).add()
    other = BoundedNames.OTHER
    assert metrics.value(COMPLETION_TOKENS, "a", "m", "m:x") == 1
    assert metrics.value(COMPLETION_TOKENS, "b", "m", "") == 1
    assert metrics.value(COMPLETION_TOKENS, other, "m", other) == 2
    assert metrics.value(COMPLETION_TOKENS, "a", "m", other) == 1
    assert len(metrics.render().splitlines()) == 2 + 4


def test_ten_thousand_tenants_make_no_more_series_than_a_hundred() -> None:
    metrics = Metrics(MetricsSettings(max_tenants=100))
    for i in range(10_000):
        metrics.histogram(TTFT, f"t{i}", "m").observe(0.1)
    assert len(metrics.render().splitlines()) == 2 + 101 * (len(TTFT.buckets) + 3)
    assert metrics.value(TTFT, BoundedNames.OTHER, "m") == 9_900


def test_what_is_off_keeps_nothing() -> None:
    metrics = Metrics(MetricsSettings(enabled=False))
    counter = metrics.counter(REQUESTS, "a", "m", "", "failed")
    counter.add()
    metrics.histogram(TTFT, "a", "m").observe(1.0)
    metrics.gauge(UNSTORED_RECORDS).set(1)
    assert counter.value == 0
    assert metrics.render() == ""


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_names_say_what_they_are(metric: Metric) -> None:
    assert metric.name.startswith("arriero_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert unit_of(metric) in UNITS.values()
    assert (metric.kind == "histogram") == bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.words.endswith(".")
    # These say who shows a series; Prometheus adds them.
    assert not {"process", "replica", "instance", "job", "le"} & set(metric.labels)


def test_names_are_used_once() -> None:
    assert len({metric.name for metric in TABLE}) == len(TABLE)


def test_page_of_metrics_is_up_to_date() -> None:
    assert main(["--check"]) == 0


class FakeBook:
    def __init__(self) -> None:
        self.known: list[MetricsTarget] = []

    def announce(self, target: MetricsTarget) -> None:
        if target not in self.known:
            self.known.append(target)

    def withdraw(self, target: MetricsTarget) -> None:
        self.known.remove(target)

    def read(self) -> list[MetricsTarget]:
        return self.known


class SlowBook(FakeBook):
    """Its head node is away for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.n_reads = 0
        self.is_back = threading.Event()

    def read(self) -> list[MetricsTarget]:
        self.n_reads += 1
        assert self.is_back.wait(10.0)
        return self.known


async def test_who_asks_for_targets_while_the_head_is_away_takes_nobodys_thread() -> None:
    book = SlowBook()
    book.announce(MetricsTarget("127.0.0.1:1", "gateway", "g-1"))
    gateway = GatewayMetrics(Metrics(), book)
    asking = [asyncio.create_task(gateway.find_targets()) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()  # Prometheus waits ten seconds.
    await asyncio.wait_for(asyncio.to_thread(int), 5.0)
    assert book.n_reads == 1
    book.is_back.set()
    assert await asyncio.gather(*asking[1:]) == [book.known] * 49
    assert await gateway.find_targets() == book.known
    assert book.n_reads == 2
    gateway.close()


def test_server_shows_metrics_and_is_announced_until_it_stops() -> None:
    metrics, book = Metrics(), FakeBook()
    metrics.counter(REQUESTS, "a", "m", "", "finished").add()
    server = MetricsServer(metrics, "127.0.0.1", "gateway", "g-1", book)
    server.start()
    try:
        url = f"http://{server.target.address}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://{server.target.address}/", timeout=10)
        (entry,) = as_discovery(book.read())
    finally:
        server.stop()
    assert 'arriero_requests_total{tenant="a",model="m",adapter="",outcome="finished"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert entry == {
        "targets": [server.target.address],
        "labels": {"process": "gateway", "replica": "g-1"},
    }
    assert book.known == []
