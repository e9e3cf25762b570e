"""No policy is cheaper than `bench.spot_bound` says; where the best is known, it says that."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.spot_bound import bound_clairvoyant, bound_informed, lower
from bench.spot_flow import cheapest_cover, list_stays
from bench.spot_rivals import EvenSpread, OnDemandOnly, SpotHedge
from bench.spot_sim import Placement, Replay, Setting, list_offers
from bench.spot_trace import Trace
from cluster.policy.fleet import ZoneId
from cluster.policy.placement import PlacementSettings, SpotPlacement

A, B = ZoneId("us-east-1a"), ZoneId("us-west-2b")
SETTING = Setting(target=2, start_up_s=60.0, window_s=3600.0)
NEVER = 1e6

rooms = st.lists(st.sampled_from([0, 1, 2, 4]), min_size=12, max_size=12)


def trace(a: list[int], b: list[int]) -> Trace:
    return Trace("made", 3600.0 / len(a), {A: a, B: b})


def cover(made: Trace, short_price: float = NEVER) -> float:
    return cheapest_cover(list_stays(made, SETTING, 0.0), SETTING, short_price)


@settings(max_examples=15, deadline=None)
@given(rooms, rooms, st.sampled_from(["on demand", "spread", "SpotHedge", "ours"]))
def test_nobody_is_cheaper_than_the_clairvoyant(a: list[int], b: list[int], name: str) -> None:
    made = trace(a, b)
    offers = list_offers(made, SETTING)
    policies: dict[str, Placement] = {
        "on demand": OnDemandOnly(2, offers),
        "spread": EvenSpread(2, offers),
        "SpotHedge": SpotHedge(2, 1, offers),
        "ours": SpotPlacement(PlacementSettings(2, 60.0), offers),
    }
    outcome = Replay(made, policies[name], SETTING, 0.0).run()
    bound = lower(bound_clairvoyant(made, SETTING, [0.0]), SETTING, outcome.availability)
    assert bound <= outcome.cost + 1e-9


def test_clairvoyant_takes_spot_alone_while_it_lasts() -> None:
    assert cover(trace([2] * 6, [0] * 6)) == 2 * 120


def test_clairvoyant_pays_for_on_demand_where_there_is_no_room() -> None:
    assert cover(trace([0] * 6, [0] * 6)) == 2 * 120 * 3


def test_clairvoyant_pays_for_both_nodes_while_one_takes_over() -> None:
    assert cover(trace([2, 2, 0, 0, 0, 0], [0, 2, 2, 2, 2, 2])) == 2 * (120 + 2)


def test_clairvoyant_bridges_what_no_zone_covers() -> None:
    made = trace([2, 2, 0, 0, 0, 0], [0, 0, 2, 2, 2, 2])
    assert cover(made) == 2 * (120 + 3 * (2 + 2))
    assert cover(made, short_price=4.0) == 2 * (120 + 4 * 2)


def test_clairvoyant_gives_one_place_to_one_node() -> None:
    assert cover(trace([1] * 6, [0] * 6)) == 120 + 3 * 120


def test_informed_pays_for_spot_alone_where_nothing_is_taken() -> None:
    bounds = bound_informed(trace([2] * 6, [0] * 6), SETTING, [0.0])
    assert lower(bounds, SETTING, 0.999) == pytest.approx(1 / 3, rel=0.002)


def test_informed_hedges_against_a_reclaim_that_the_clairvoyant_sees_coming() -> None:
    made = Trace("made", 600.0, {A: [2, 2, 2, 0, 2, 2]})
    informed = lower(bound_informed(made, SETTING, [0.0]), SETTING, 0.999)
    clairvoyant = lower(bound_clairvoyant(made, SETTING, [0.0]), SETTING, 0.999)
    assert informed > clairvoyant + 0.1
