"""Every panel of every dashboard, asked of a real Prometheus that scrapes the real platform.

A model of its own with random weights on two real engines, one of which is killed; tenants that
compete, one with limits; adapters. A reclaim agent hears a cloud that is played, and what a fleet's
controller would see is shown by its own code. All that was logged meanwhile has no text and no key.
"""

import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.bootstrap import ROOT
from cluster.monitoring import picture
from cluster.monitoring.boards import BOARDS
from cluster.monitoring.panels import fill_in
from serve_app.deployment_names import engine_of
from serve_app.keys import make_key
from serve_app.names import ModelName
from tests.integration.conftest import write_vllm
from tests.support.adapters import make_family
from tests.support.metadata_server import Aws, serve
from tests.support.prometheus import PrometheusServer, find_prometheus
from tests.support.ray_platform import SMALL, RayPlatform
from tests.support.settings import write_args

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(600)]

TINY = ModelName("tiny")
ADMIN = make_key()
KEYS = {tenant: make_key() for tenant in ("heavy", "light", "bounded")}
WRONG_KEY = make_key()
SECRET = "Zanzibar marmalade"
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
        logging={"level": "DEBUG"},
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
        self.answers: list[str] = []
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
            "prompt": f"{SECRET} in a jar, please",
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        answer = client.post("/v1/completions", json=body)
        with self._lock:
            self.statuses.append(answer.status_code)
            if answer.status_code == 200:
                self.completion_tokens += answer.json()["usage"]["completion_tokens"]
                self.answers.append(answer.json()["choices"][0]["text"])
        if answer.status_code == 429:
            time.sleep(0.5)


@dataclass(frozen=True)
class Seen:
    """A while of load in which an engine was killed: what Prometheus knows, what was asked."""

    prometheus: PrometheusServer
    load: Load
    logs: bytes = field(repr=False)
    """All that Ray and the platform's processes have logged, and all files of the state folder."""


@contextmanager
def running(*command: str) -> Iterator[None]:
    """A process beside the platform."""
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """As a cell's nodes have it, and vLLM's own default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("VLLM_LOGGING_LEVEL", "INFO")
        yield


@pytest.fixture(scope="module")
def seen(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, environment: None
) -> Iterator[Seen]:
    find_prometheus()
    folder = tmp_path_factory.mktemp("monitoring")
    with RayPlatform() as platform:
        platform.deploy_and_wait(write_platform(tiny_model, folder))
        head = platform.ray_address
        agent = ["cluster.reclaim_agent", "--cloud=aws", "--node-id=n1", f"--address={head}"]
        with (
            serve(Aws) as cloud,
            running(*agent, f"--base-url={cloud.url}"),
            running("tests.support.shown_fleet", head),
            PrometheusServer(folder / "prometheus", platform.url, ADMIN.text) as prometheus,
        ):
            # Gateway, router, ledger, two engines, fleet, reclaim agent: by discovery alone.
            try:
                platform.wait_until(lambda: is_all_up(prometheus, 7), 60.0, "scraped")
            except TimeoutError as error:
                raise AssertionError(f"{prometheus.targets()}") from error
            cloud.hint = {"noticeTime": "2026-11-21T12:00:00Z"}
            ask_wrongly(platform.url)
            with Load(platform.url) as load:
                time.sleep(15.0)
                platform.kill_replica(engine_of(TINY))
                time.sleep(15.0)
            time.sleep(3.0)
            files = [file for file in (folder / "state").rglob("*") if file.is_file()]
            state = [file.read_bytes() for file in files]
            yield Seen(prometheus, load, b"\n".join([platform.logs(), *state]))


def ask_wrongly(url: str) -> None:
    """Errors, too, are logged."""
    body = {"model": "tiny", "prompt": SECRET, "temperature": -1}
    for key, status in ((WRONG_KEY, 401), (KEYS["light"], 400)):
        headers = {"authorization": f"Bearer {key.text}"}
        answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers)
        assert answer.status_code == status


def is_all_up(prometheus: PrometheusServer, n_targets: int) -> bool:
    states = prometheus.targets()
    return len(states) == n_targets and set(states.values()) == {"up"}


def has_data(series: list[dict[str, Any]]) -> bool:
    return any(not math.isnan(float(value)) for one in series for _, value in one["values"])


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board.uid))
def test_every_panel_has_data(board: Any, seen: Seen) -> None:
    empty = [
        f"{panel.title}: {query.expr}"
        for panel in board.panels()
        for query in panel.queries
        if not has_data(seen.prometheus.ask_range(fill_in(query.expr, "10s"), WINDOW_S))
    ]
    assert empty == []


def test_overview_can_be_drawn(seen: Seen, tmp_path: Path) -> None:
    """The README's is drawn here, where the variable names its file."""
    file = Path(os.environ.get("ARRIERO_PICTURE") or tmp_path / "overview.png")
    assert picture.main([seen.prometheus.url, str(file), "--minutes", "0.75"]) == 0
    assert file.stat().st_size > 20_000


def test_counts_are_exact(seen: Seen) -> None:
    """The gateway lived all the time, so what it has counted is all that was asked."""
    prometheus, load = seen.prometheus, seen.load
    finished = load.statuses.count(200)
    assert finished == prometheus.value('sum(arriero_requests_total{outcome="finished"})') > 50
    refused = load.statuses.count(429)
    by_limits = 'sum(arriero_requests_total{outcome="refused",tenant="bounded"})'
    assert refused == prometheus.value(by_limits)
    assert refused == prometheus.value("sum(arriero_limit_refusals_total)")
    assert set(load.statuses) == {200, 429}
    assert load.completion_tokens == prometheus.value("sum(arriero_completion_tokens_total)")
    assert prometheus.value("sum(arriero_request_duration_seconds_count)") == finished
    tokens = prometheus.value("sum(arriero_inter_token_seconds_count)")
    assert tokens == load.completion_tokens - finished


def test_a_killed_engine_is_seen(seen: Seen) -> None:
    prometheus = seen.prometheus
    assert prometheus.value('sum(arriero_engines_lost_total{cause="silent"})') == 1
    assert prometheus.value('sum(arriero_migrations_total{cause="died"})') > 0
    assert prometheus.value("sum(arriero_recomputed_tokens_total)") > 0
    assert prometheus.value("sum(arriero_migration_gap_seconds_count)") > 0


def test_what_a_cloud_says_is_seen(seen: Seen) -> None:
    assert seen.prometheus.value('arriero_reclaim_notices_total{kind="likely"}') == 1
    assert seen.prometheus.value('arriero_fleet_nodes{market="spot",state="ready"}') == 2


def test_logs_have_a_line_for_each_request_and_no_key_and_no_text(seen: Seen) -> None:
    logs, load = seen.logs, seen.load
    assert logs.count(b"request_log: POST /v1/completions status=") == len(load.statuses) + 2
    assert SECRET.encode() not in logs
    assert [key.id for key in (*KEYS.values(), ADMIN, WRONG_KEY) if key.text.encode() in logs] == []
    # Stretches that JSON and logs would write as they are. Who asks the same gets the same.
    stretches = {s for text in load.answers for s in re.findall(r"[ -!#-\[\]-~]{24,}", text)}
    assert len(stretches) >= 5
    assert [stretch for stretch in stretches if stretch.encode() in logs] == []


def test_alert_rules_are_loaded_and_can_be_asked(seen: Seen) -> None:
    rules = seen.prometheus.rules()
    assert len(rules) > 8
    assert {rule["health"] for rule in rules} == {"ok"}
