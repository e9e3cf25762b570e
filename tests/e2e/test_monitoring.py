"""Every panel of every dashboard, asked of a real Prometheus that scrapes the real platform.

A model of its own with random weights on two real engines, one of which is killed; tenants that
compete, one with limits; adapters. The fleet's metrics come of the code that shows them, without
a cloud.
"""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.fleet_metrics import FleetMetrics
from cluster.monitoring.boards import BOARDS
from cluster.monitoring.panels import fill_in
from cluster.policy.fleet import Node, NodeId, Reclaimed, ZoneId
from serve_app.deployment_names import engine_of
from serve_app.keys import make_key
from serve_app.metrics import Metrics
from serve_app.metrics_server import MetricsServer
from serve_app.names import ModelName
from tests.integration.conftest import write_vllm
from tests.support.adapters import make_family
from tests.support.prometheus import PrometheusServer, find_prometheus
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.settings import write_args

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(600)]

TINY = ModelName("tiny")
ADMIN = make_key()
KEYS = {tenant: make_key() for tenant in ("heavy", "light", "bounded")}
ZONE = ZoneId("aws/us-east-1/us-east-1f")
WINDOW_S = 45.0


def write_platform(tiny_model: Path, folder: Path) -> dict[str, Any]:
    make_family(folder / "adapters", tiny_model, 4, ranks=(8,))
    model = write_vllm(
        tiny_model,
        args={"max_num_seqs": 4},
        adapters={"slots": 2, "in_memory": 3},
        accelerator={"kind": "cpu", "cpus": 0.1},
        replicas={"min": 2, "max": 2},
        drain_timeout_s=5.0,
    )
    limits = {"requests_per_min": 20, "total_tokens_per_min": 10_000}
    terms = {"bounded": {"limits": limits, "budgets": {"usd_per_day": 0.01}}}
    tenants = [
        {"id": tenant, "keys": [{"hash": key.hash}], **terms.get(tenant, {})}
        for tenant, key in KEYS.items()
    ]
    tenants.append({"id": "ops", "keys": [{"hash": ADMIN.hash, "scopes": ["admin"]}]})
    return write_args(
        model,
        auth={"kind": "keys"},
        tenants=tenants,
        prices={
            TINY: {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 4.0}
        },
        adapters={
            "families": [{"base": TINY, "source": str(folder / "adapters")}],
            "cache": {"path": str(folder / "cache")},
        },
        store={"state_dir": str(folder / "state")},
        **SMALL,
    )


class Load:
    """Clients that ask without end, until it is left; counts what they were told was used."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.statuses: list[int] = []
        self.completion_tokens = 0
        self._pool = ThreadPoolExecutor(16)

    def __enter__(self) -> "Load":
        for i in range(8):
            self._pool.submit(self._run, "heavy", i, 48)
        for i in range(4):
            self._pool.submit(self._run, "light", i, 24)
        self._pool.submit(self._run, "bounded", 0, 8)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._pool.shutdown()

    def _run(self, tenant: str, client_index: int, max_tokens: int) -> None:
        headers = {"authorization": f"Bearer {KEYS[tenant].text}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=120.0) as client:
            turn = client_index
            while not self._stopping.is_set():
                turn += 1
                self._ask(client, "tiny" if turn % 3 else f"tiny:a0000{turn % 4}", max_tokens)

    def _ask(self, client: httpx.Client, model: str, max_tokens: int) -> None:
        body = {
            "model": model,
            "prompt": [7] * 20,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        answer = client.post("/v1/completions", json=body)
        with self._lock:
            self.statuses.append(answer.status_code)
            if answer.status_code == 200:
                self.completion_tokens += answer.json()["usage"]["completion_tokens"]
        if answer.status_code == 429:
            time.sleep(0.5)


@pytest.fixture(scope="module")
def fleet() -> Iterator[MetricsServer]:
    """What shows a fleet of three nodes, one of which was just taken back."""
    metrics = Metrics()
    shown = FleetMetrics(
        metrics, lambda zone: zone.split("/")[0], lambda node: 2.1 if node.market == "spot" else 6.9
    )
    nodes = [Node(NodeId(f"n{i}"), ZONE, "spot", 0.0, is_ready=i > 0) for i in range(3)]
    shown.show([*nodes, Node(NodeId("n9"), ZONE, "on-demand", 0.0, is_ready=True)])
    shown.lose(Reclaimed(ZONE, 1, 3))
    server = MetricsServer(metrics, "127.0.0.1", "fleet", "fleet", None)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def seen(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, fleet: MetricsServer
) -> Iterator[tuple[PrometheusServer, Load]]:
    """Prometheus after a while of load in which an engine was killed, and what was asked."""
    find_prometheus()
    folder = tmp_path_factory.mktemp("monitoring")
    labels = {"process": "fleet", "replica": "fleet"}
    more = [{"targets": [fleet.target.address], "labels": labels}]
    with RayPlatform() as platform:
        platform.deploy_and_wait(write_platform(tiny_model, folder))
        with PrometheusServer(folder / "prometheus", platform.url, ADMIN.text, more) as prometheus:
            # Gateway, router, ledger, two engines, and the fleet.
            try:
                platform.wait_until(lambda: is_all_up(prometheus, 6), 60.0, "scraped")
            except TimeoutError as error:
                raise AssertionError(f"{prometheus.targets()}") from error
            with Load(platform.url) as load:
                time.sleep(15.0)
                platform.kill_replica(engine_of(TINY))
                time.sleep(15.0)
            time.sleep(3.0)
            yield prometheus, load


def is_all_up(prometheus: PrometheusServer, n_targets: int) -> bool:
    states = prometheus.targets()
    return len(states) == n_targets and set(states.values()) == {"up"}


def has_data(series: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(value)) for one in series for _, value in one["values"])


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board.uid))
def test_every_panel_has_data(board: Any, seen: tuple[PrometheusServer, Load]) -> None:
    prometheus, _ = seen
    empty = [
        f"{panel.title}: {query.expr}"
        for panel in board.panels()
        for query in panel.queries
        if not has_data(prometheus.ask_range(fill_in(query.expr, "10s"), WINDOW_S))
    ]
    assert empty == []


def test_counts_are_exact(seen: tuple[PrometheusServer, Load]) -> None:
    """The gateway lived all the time, so what it has counted is all that was asked."""
    prometheus, load = seen
    finished = load.statuses.count(200)
    assert finished == prometheus.value('sum(arriero_requests_total{outcome="finished"})') > 50
    refused = load.statuses.count(429)
    assert refused == prometheus.value('sum(arriero_requests_total{outcome="refused"})')
    assert refused == prometheus.value("sum(arriero_limit_refusals_total)")
    assert set(load.statuses) == {200, 429}
    assert load.completion_tokens == prometheus.value("sum(arriero_completion_tokens_total)")
    assert prometheus.value("sum(arriero_request_duration_seconds_count)") == finished
    tokens = prometheus.value("sum(arriero_inter_token_seconds_count)")
    assert tokens == load.completion_tokens - finished


def test_a_killed_engine_is_seen(seen: tuple[PrometheusServer, Load]) -> None:
    prometheus, _ = seen
    assert prometheus.value('sum(arriero_engines_lost_total{cause="silent"})') == 1
    assert prometheus.value('sum(arriero_migrations_total{cause="died"})') > 0
    assert prometheus.value("sum(arriero_recomputed_tokens_total)") > 0
    assert prometheus.value("sum(arriero_migration_gap_seconds_count)") > 0


def test_alert_rules_are_loaded_and_can_be_asked(seen: tuple[PrometheusServer, Load]) -> None:
    prometheus, _ = seen
    rules = prometheus.rules()
    assert len(rules) > 8
    assert {rule["health"] for rule in rules} == {"ok"}
