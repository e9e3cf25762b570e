"""Where a fleet's metrics are shown, and who lists them."""

import threading
import urllib.request

import pytest

from cluster.machine import address_towards
from serve_app import fleet_watch
from serve_app.fleet_watch import watch_fleet
from serve_app.metrics_book import MetricsTarget


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeBook, "listed", {}, raising=False)
    monkeypatch.setattr(FakeBook, "has_heard", threading.Event(), raising=False)
    monkeypatch.setattr(fleet_watch, "RayBook", FakeBook)
    with watch_fleet("spot", None, "127.0.0.1:6379"):
        assert FakeBook.has_heard.wait(5.0)
        target = FakeBook.listed["fleet-spot"]
        text = urllib.request.urlopen(f"http://{target.address}/metrics", timeout=5).read()
    assert target.process == "fleet"
    assert b"process_resident_memory_bytes" in text
    assert FakeBook.listed == {}


def test_a_fleet_of_cells_shows_nothing_unless_a_port_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_watch, "MetricsServer", None)
    with watch_fleet("cells", None) as shown:
        assert shown is not None


def test_own_address_is_the_one_on_the_way_to_another() -> None:
    assert address_towards("127.0.0.1:6379") == "127.0.0.1"
