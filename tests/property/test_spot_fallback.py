"""The numbered invariants of cluster/policy/fallback.py."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.cover import Pricing
from cluster.policy.fallback import Keeping, choose_spare, count_missing
from cluster.policy.fleet import Market, Node, NodeId, ZoneId
from cluster.policy.inventory import Inventory
from cluster.policy.shortage import Odds

ZONES = [ZoneId(name) for name in ("a1x", "a1y", "a2x", "b1x")]
NOW_S = 1000.0

chances = st.floats(0, 1)
prices = st.floats(0.1, 1000.0)
pricings = st.builds(Pricing, st.integers(1, 4), prices, prices)
zones = st.lists(st.sampled_from(ZONES), max_size=4)


@st.composite
def odds(draw: st.DrawFn) -> Odds:
    risks = {zone: draw(chances) for zone in ZONES}
    return Odds({zone: zone[:2] for zone in ZONES}, risks, draw(chances), draw(chances))


@st.composite
def fleets(draw: st.DrawFn, is_confirmed: bool | None = None) -> Inventory:
    markets: list[Market] = draw(st.lists(st.sampled_from(["spot", "on-demand"]), max_size=8))
    return Inventory.of(
        [
            Node(
                NodeId(str(i)),
                draw(st.sampled_from(ZONES)),
                market,
                NOW_S - draw(st.floats(0.0, 200.0)),
                draw(st.booleans()),
                draw(st.booleans()) if is_confirmed is None else is_confirmed,
            )
            for i, market in enumerate(markets)
        ]
    )


@given(fleets(), zones, pricings, odds(), st.integers(0, 4))
def test_parts_add_up(
    fleet: Inventory, asked: list[ZoneId], pricing: Pricing, risk: Odds, floor: int
) -> None:
    missing = count_missing(fleet, asked, pricing, risk, floor)
    total = missing.certain + missing.doubtful
    assert total == max(0, missing.wanted - len(fleet.on_demand))
    assert missing.certain >= 0
    assert missing.doubtful >= 0
    assert missing.averted_usd_per_h >= -1e-6


@given(fleets(is_confirmed=True), pricings, odds(), st.integers(0, 4))
def test_nothing_asked_is_certain(
    fleet: Inventory, pricing: Pricing, risk: Odds, floor: int
) -> None:
    missing = count_missing(fleet, [], pricing, risk, floor)
    assert missing.doubtful == 0
    assert missing.hanging(3.0, 60.0) is None


@given(fleets(), pricings, odds(), st.integers(0, 4), st.floats(0.0, 200.0))
def test_the_paid_stays(
    fleet: Inventory, pricing: Pricing, risk: Odds, wanted: int, paid_s: float
) -> None:
    keeping = Keeping(pricing.target, 30.0, paid_s)
    for node in choose_spare(fleet, pricing, risk, wanted, keeping, NOW_S):
        assert node.market == "on-demand"
        assert NOW_S - node.started_s >= paid_s
