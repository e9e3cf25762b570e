"""The numbered invariants of cluster/policy/cover.py."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.cover import Pricing
from cluster.policy.fleet import ZoneId
from cluster.policy.shortage import Odds

ZONES = [ZoneId(name) for name in ("a1x", "a1y", "a2x", "b1x")]

holdings = st.dictionaries(st.sampled_from(ZONES), st.integers(0, 3))
chances = st.floats(0, 1)
prices = st.floats(0.1, 10_000)


@st.composite
def odds(draw: st.DrawFn) -> Odds:
    risks = {zone: draw(chances) for zone in ZONES}
    return Odds({zone: zone[:2] for zone in ZONES}, risks, draw(chances), draw(chances))


@given(st.integers(1, 4), prices, prices, holdings, st.sampled_from(ZONES), odds())
def test_more_spot_needs_no_dearer_cover(
    target: int, price: float, short: float, held: dict[ZoneId, int], zone: ZoneId, risk: Odds
) -> None:
    pricing = Pricing(target, price, short)
    more = {**held, zone: held.get(zone, 0) + 1}
    assert pricing.cover(more, risk).usd_per_h <= pricing.cover(held, risk).usd_per_h + 1e-6


@given(st.integers(1, 4), prices, prices, holdings, st.integers(0, 6), odds())
def test_no_count_is_cheaper(
    target: int, price: float, short: float, held: dict[ZoneId, int], count: int, risk: Odds
) -> None:
    pricing = Pricing(target, price, short)
    other = count * price + short * pricing.shortage(held, count, risk)
    assert pricing.cover(held, risk).usd_per_h <= other + 1e-6
