"""Where a fleet's metrics are shown, and who lists them."""

import json
import threading
import urllib.request
from glob import glob
from pathlib import Path

import pytest
import yaml

from cluster.machine import address_towards
from cluster.monitoring.local_prometheus import write_config
from serve_app import fleet_watch
from serve_app.fleet_watch import watch_fleet
from serve_app.metrics_book import FileBook, MetricsTarget
from tests.support.platform import wait_until


class FakeBook:
    """Ray's, of one head."""

    listed: dict[str, MetricsTarget]
    has_heard: threading.Event

    def __init__(self, address: str) -> None:
        assert address == "127.0.0.1:6379"

    def announce(self, target: MetricsTarget) -> None:
        self.listed[target.replica] = target
        self.has_heard.set()

    def withdraw(self, target: MetricsTarget) -> None:
        self.listed.pop(target.replica, None)

    def read(self) -> list[MetricsTarget]:
        return list(self.listed.values())


def test_a_fleet_of_one_platform_is_listed_there_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(FakeBook, "listed", {}, raising=False)
    monkeypatch.setattr(FakeBook, "has_heard", threading.Event(), raising=False)
    monkeypatch.setattr(fleet_watch, "RayBook", FakeBook)
    with watch_fleet("spot", None, tmp_path, "127.0.0.1:6379"):
        assert FakeBook.has_heard.wait(5.0)
        target = FakeBook.listed["fleet-spot"]
        text = urllib.request.urlopen(f"http://{target.address}/metrics", timeout=5).read()
    assert target.process == "fleet"
    assert b"process_resident_memory_bytes" in text
    assert FakeBook.listed == {}


def test_a_fleet_of_cells_is_found_by_a_prometheus_on_its_machine(tmp_path: Path) -> None:
    config = write_config(tmp_path / "p", "", "5s", fleets=tmp_path / "fleet")
    (job,) = yaml.safe_load(config.read_text())["scrape_configs"]
    (pattern,) = job["file_sd_configs"][0]["files"]
    assert "http_sd_configs" not in job
    with watch_fleet("cells", None, tmp_path / "fleet" / "cells"):
        wait_until(lambda: bool(glob(pattern)), 5.0, "listed")
        (listed,) = json.loads(Path(*glob(pattern)).read_bytes())
        (address,) = listed["targets"]
        assert listed["labels"] == {"process": "fleet", "replica": "fleet-cells"}
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            assert answer.status == 200
    assert glob(pattern) == []


def test_a_controller_leaves_the_file_of_its_successor_alone(tmp_path: Path) -> None:
    book = FileBook(tmp_path / "fleet" / "metrics.json")
    mine, theirs = (MetricsTarget(f"127.0.0.1:{p}", "fleet", "fleet-f") for p in (1, 2))
    book.announce(mine)
    book.announce(theirs)
    book.withdraw(mine)
    assert book.read() == [theirs]
    book.withdraw(theirs)
    assert book.read() == []


def test_own_address_is_the_one_on_the_way_to_another() -> None:
    assert address_towards("127.0.0.1:6379") == "127.0.0.1"
