"""What `bench.spot_explain` adds up."""

import json
from pathlib import Path

import pytest

from bench.spot_explain import list_rows, spend_least, sum_tallies
from bench.spot_rivals import OnDemandOnly, SpotHedge
from bench.spot_sim import Replay, Setting, Tally, list_offers
from bench.spot_trace import load_trace

SETTING = Setting(target=2, start_up_s=60.0, window_s=3600.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for zone, rooms in {"us-east-1a": [2, 2, 2, 0, 0, 0], "us-west-2b": [0, 2, 2, 2, 2, 2]}.items():
        content = {"metadata": {"gap_seconds": 600}, "data": rooms}
        (tmp_path / f"{zone}_v100_1.json").write_text(json.dumps(content))
    return tmp_path


def test_time_and_money_by_open_zones_add_up(folder: Path) -> None:
    trace = load_trace(folder)
    outcomes = [
        Replay(trace, policy, SETTING, 0.0).run()
        for policy in (
            SpotHedge(2, 1, list_offers(trace, SETTING)),
            OnDemandOnly(2, list_offers(trace, SETTING)),
        )
    ]
    tallies = sum_tallies(outcomes)
    assert {n_open: tally.ticks for n_open, tally in tallies.items()} == {1: 160, 2: 80}
    full = 120 * SETTING.target * SETTING.on_demand_usd_per_h
    total = sum((tally.usd_per_h for tally in tallies.values()), 0.0)
    assert total / full == pytest.approx(sum(outcome.cost for outcome in outcomes))


def test_least_cost_holds_the_target_on_spot_where_zones_stay(folder: Path) -> None:
    least = spend_least(folder, SETTING, [0.0], 0.9)
    assert sum(usd for usd, _ in least.values()) <= 120 * SETTING.target * 3.0
    assert set(least) == {1, 2}


def test_rows_end_with_the_sum_of_all() -> None:
    held = {name: {1: Tally(60, 60.0, 60, 0, 6), 2: Tally(60, 180.0, 0, 60, 0)} for name in NAMES}
    rows = list_rows("T", SETTING, {1: (60.0, 3.0)}, held)
    assert [row[1] for row in rows] == ["1", "2", "all"]
    assert rows[-1][2:] == [
        "1.000",
        "0.083",
        "36.0",
        *("0.333", "0.5 + 0.5", "72.0") * 2,
    ]


NAMES = ("SpotHedge", "Arriero")
