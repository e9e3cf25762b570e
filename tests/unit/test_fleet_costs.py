"""What a fleet's nodes cost in some days, and who bears it."""

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from cluster.fleet_book import Book, Ended, FleetBook
from cluster.policy.fleet import NodeId, ZoneId
from cluster.policy.reconcile import Entry
from serve_app.config import FairnessSettings
from serve_app.gateway.fleet_costs import FleetCosts
from serve_app.store.usage import UsageSum

_DAY = date(2026, 11, 1)
_START_S = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
_NOON_S = _START_S + 43_200.0
_ENTRY = Entry(NodeId("f-1"), ZoneId("aws/r/a"), "spot", _START_S, 2.0)


def _served(name: str, hours: float) -> Entry:
    """A node that is up from midnight on and serves after so many hours."""
    return replace(_ENTRY, id=NodeId(name), up_s=_START_S, ready_s=_START_S + hours * 3600.0)


def _usage(tenant: str, tokens: int) -> UsageSum:
    return UsageSum({"tenant": tenant}, 1, 0, 0, 0, 0, tokens, 0)


def test_each_node_is_shown_with_its_cost_and_none_twice(tmp_path: Path) -> None:
    book, gone = FleetBook(tmp_path), _served("f-1", 1.0)
    book.add_ended(Ended(gone, _START_S + 7200.0, 6.0))
    book.save(Book(3, (gone, _served("f-2", 2.0))))  # its writer died before it took f-1 out
    report = FleetCosts(tmp_path, FairnessSettings()).report(_DAY, _DAY, [], _NOON_S)
    assert report is not None
    assert report["usd"] == pytest.approx(2 * 2.0 + 12 * 2.0)
    place = {"zone": "aws/r/a", "market": "spot"}
    assert report["by_node"] == {
        "f-1": {**place, "usd": pytest.approx(4.0), "wasted_usd": pytest.approx(2.0)},
        "f-2": {**place, "usd": pytest.approx(24.0), "wasted_usd": pytest.approx(4.0)},
    }


def test_idle_time_is_shown_apart_where_it_is_known_what_a_node_can_serve(tmp_path: Path) -> None:
    FleetBook(tmp_path).save(Book(2, (_served("f-1", 2.0),)))
    fairness = FairnessSettings()
    n_tokens = round(1_000 / fairness.output_cost)
    for able, idle_usd in ((None, 0.0), (200.0, 10.0)):
        costs = FleetCosts(tmp_path, fairness, able)
        report = costs.report(_DAY, _DAY, [_usage("a", n_tokens)], _NOON_S)
        assert report is not None
        assert report["idle_usd"] == pytest.approx(idle_usd, abs=0.1)
        assert sum(report["by_tenant"].values()) == pytest.approx(20.0 - idle_usd, abs=0.1)
