"""The simulator and the rivals of `bench.spot`, on traces made by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.spot_rivals import EvenSpread, OnDemandOnly, SpotHedge
from bench.spot_sim import Outcome, Placement, Replay, Setting, choose_offsets, list_offers
from bench.spot_trace import Trace, load_trace
from cluster.policy.fleet import End, Node, NodeId, Plan, Reclaimed, Refused, ZoneId
from cluster.policy.placement import PlacementSettings, SpotPlacement

A, B = ZoneId("us-east-1a"), ZoneId("us-west-2b")
SETTING = Setting(target=2, start_up_s=60.0, window_s=3600.0)


def trace(a: Sequence[int], b: Sequence[int]) -> Trace:
    return Trace("made", 600.0, {A: a, B: b})


def replay(policy: Placement, made: Trace, setting: Setting = SETTING) -> Outcome:
    return Replay(made, policy, setting, 0.0).run()


def test_on_demand_costs_one_and_misses_only_its_start() -> None:
    made = trace([0] * 6, [0] * 6)
    outcome = replay(OnDemandOnly(2, list_offers(made, SETTING)), made)
    assert outcome.cost == pytest.approx(1)
    assert outcome.availability == 1
    assert outcome.availability_all == pytest.approx(1 - 60 / 3600)


def test_spot_costs_its_price_while_there_is_room() -> None:
    made = trace([2] * 6, [2] * 6)
    outcome = replay(EvenSpread(2, list_offers(made, SETTING)), made)
    assert outcome.cost == pytest.approx(1 / 3)
    assert (outcome.availability, outcome.reclaims) == (1, 0)


def test_node_without_room_is_taken_and_its_successor_starts_anew() -> None:
    made = trace([1, 1, 1, 0, 1, 1], [2] * 6)
    outcome = replay(EvenSpread(2, list_offers(made, SETTING)), made)
    assert outcome.reclaims == 1
    assert outcome.availability < 1


def test_notice_lets_a_node_serve_until_its_end() -> None:
    made = trace([1, 1, 1, 0, 0, 0], [2] * 6)

    def available(notice_s: float) -> float:
        setting = Setting(2, 60.0, window_s=3600.0, notices_s={"aws": notice_s})
        return replay(SpotHedge(2, 0, list_offers(made, setting)), made, setting).availability

    assert available(0.0) < available(120.0) == 1


def test_node_that_is_ended_early_is_charged_for_the_least_that_is_paid() -> None:
    class Fickle(OnDemandOnly):
        def plan(self, nodes: Sequence[Node], now_s: float) -> Plan:
            wanted = super().plan(nodes, now_s) if now_s == 0 else Plan((), (), 0.0, "")
            return replace(wanted, ends=tuple(End(n.id, "") for n in nodes if now_s > 0))

    made = trace([0] * 6, [0] * 6)

    def cost(paid_s: float) -> float:
        setting = replace(SETTING, paid_s=paid_s)
        return replay(Fickle(2, list_offers(made, setting)), made, setting).cost

    assert cost(0.0) == pytest.approx(30 / 3600)
    assert cost(300.0) == pytest.approx(300 / 3600)


def test_policy_never_hears_of_zones_where_it_has_asked_for_nothing() -> None:
    heard: list[ZoneId] = []

    class Listening(EvenSpread):
        def observe(self, happenings: Sequence[object], now_s: float) -> None:
            heard.extend(h.zone for h in happenings if isinstance(h, Reclaimed | Refused))

    made = trace([1, 0, 1, 0, 1, 0], [2, 0, 2, 0, 2, 0])
    offers = [offer for offer in list_offers(made, SETTING) if offer.zone == B]
    replay(Listening(2, offers), made)
    assert set(heard) == {B}


def test_spot_hedge_avoids_a_zone_that_failed_until_fewer_than_two_are_left() -> None:
    offers = list_offers(Trace("t", 600.0, {A: [1], B: [1], ZoneId("us-east-2c"): [1]}), SETTING)
    hedge = SpotHedge(1, 0, offers)
    for failed in (A, B):
        hedge.observe([Refused(failed, "spot")], 0.0)
    assert hedge.plan((), 0.0).launches[0].zone in {A, B, offers[2].zone}
    hedge.observe([Refused(A, "spot")], 0.0)
    assert hedge.plan((), 0.0).launches[0].zone != A


def test_spot_hedge_keeps_on_demand_while_spot_and_spare_are_not_ready() -> None:
    hedge = SpotHedge(3, 1, list_offers(trace([4], [4]), SETTING))
    ready = [Node(NodeId(f"n{i}"), A, "spot", 0.0, i < 2) for i in range(4)]
    markets = [launch.market for launch in hedge.plan(ready, 0.0).launches]
    assert markets == ["on-demand"] * 2


def test_ours_falls_back_while_spot_is_away_and_returns() -> None:
    made = trace([3] * 12 + [0] * 12 + [3] * 48, [3] * 12 + [0] * 12 + [3] * 48)
    setting = Setting(2, 60.0, window_s=43_000.0)
    settings = PlacementSettings(2, 60.0)
    outcome = replay(SpotPlacement(settings, list_offers(made, setting)), made, setting)
    assert outcome.availability > 0.99
    assert 0 < outcome.on_demand < 0.8
    assert outcome.cost < 0.9


def test_windows_lie_in_their_part_and_are_the_same_each_time() -> None:
    made = trace([1] * 100, [1] * 100)
    offsets_s = choose_offsets(made, SETTING, 20, (0.5, 1.0))
    assert offsets_s == choose_offsets(made, SETTING, 20, (0.5, 1.0))
    assert min(offsets_s) >= 30_000
    assert max(offsets_s) <= 60_000 - 3600


def test_trace_is_read_from_a_folder(tmp_path: Path) -> None:
    content = {"metadata": {"gap_seconds": 300}, "data": [1, 0]}
    (tmp_path / "us-east-1a_v100_1.json").write_text(json.dumps(content))
    made = load_trace(tmp_path)
    assert (made.room(A, 0.0), made.room(A, 300.0), made.duration_s) == (1, 0, 600.0)
    with pytest.raises(SystemExit, match="no traces"):
        load_trace(tmp_path / "none")


def test_what_was_before_the_window_is_known_and_not_counted() -> None:
    made = trace([2] * 6 + [0] + [2] * 7, [2] * 14)
    setting = replace(SETTING, history_s=7_200.0)

    def run(offset_s: float) -> Outcome:
        policy = EvenSpread(2, list_offers(made, setting))
        return Replay(made, policy, setting, offset_s).run()

    late, early = run(4_800.0), run(0.0)
    # Nodes are there when the window begins, and who was taken before it is not in it.
    assert (late.availability, late.availability_all) == (1, 1)
    assert (late.reclaims, late.launches) == (0, 0)
    assert late.cost == pytest.approx(1 / 3)
    assert early.availability_all < 1


def test_cost_is_told_by_use() -> None:
    made = trace([2] * 6, [2] * 6)
    spent = replay(SpotHedge(2, 1, list_offers(made, SETTING)), made).spent
    start, whole = 60 / 3600, 3 * 2
    assert spent["spot", "serving"] == pytest.approx(2 * (1 - start) / whole)
    assert spent["spot", "spare"] == pytest.approx(1 * (1 - start) / whole)
    assert spent["spot", "starting"] == pytest.approx(3 * start / whole)
    assert spent["on-demand", "starting"] == pytest.approx(2 * start * 3 / whole)
    assert sum(spent.values()) == pytest.approx(
        replay(SpotHedge(2, 1, list_offers(made, SETTING)), made).cost
    )
