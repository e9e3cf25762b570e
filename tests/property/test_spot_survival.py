"""The numbered invariants of cluster/policy/survival.py, doors.py, shortage.py, calibration.py."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.calibration import Calibration
from cluster.policy.doors import Doors, DoorSettings
from cluster.policy.fleet import Market, Offer, Refusal, Refused, ZoneId
from cluster.policy.shortage import Odds, chance_of_fewer
from cluster.policy.survival import Survival, SurvivalSettings

ZONES = [ZoneId(f"{c}/r{r}/z{z}") for c in "ab" for r in "12" for z in "xy"]
OFFERS = [Offer(z, z[0], z[:4], 1.0, 3.0) for z in ZONES]

zones = st.sampled_from(ZONES)
gaps_s = st.floats(0, 100_000)
chances = st.floats(0, 1)
events = st.lists(
    st.tuples(zones, st.sampled_from(["hold", "take", "leave", "look", "refuse"]), gaps_s)
)


def replayed(
    happened: list[tuple[ZoneId, str, float]],
) -> tuple[Survival, dict[ZoneId, float], float]:
    survival, held, now_s = Survival(SurvivalSettings(), OFFERS), dict[ZoneId, float](), 0.0
    for zone, what, gap_s in happened:
        now_s += gap_s
        if what == "hold":
            held.setdefault(zone, now_s)
        elif what == "take" and zone in held:
            del held[zone]
            survival.reclaim(zone, 1, 1, now_s)
        elif what == "leave":
            held.pop(zone, None)
        elif what == "look":
            survival.admit(zone, now_s)
        elif what == "refuse":
            survival.refuse(zone)
        survival.see(held, now_s)
    return survival, held, now_s


@given(events, gaps_s)
def test_rates_are_positive(happened: list[tuple[ZoneId, str, float]], later_s: float) -> None:
    survival, _, now_s = replayed(happened)
    rates = survival.estimate_rates_per_h(now_s + later_s)
    assert set(rates) == set(ZONES)
    assert all(rate > 0 and math.isfinite(rate) for rate in rates.values())
    assert 0 <= survival.estimate_collapse() <= 1


@given(events, gaps_s)
def test_survivors_are_trusted(happened: list[tuple[ZoneId, str, float]], later_s: float) -> None:
    survival, held, now_s = replayed(happened)
    before = survival.estimate_rates_per_h(now_s)
    survival.see(held, now_s + later_s)
    after = survival.estimate_rates_per_h(now_s + later_s)
    assert all(after[zone] <= before[zone] + 1e-9 for zone in held)


@given(zones, st.lists(st.floats(1.0, 2000.0), min_size=1, max_size=20), st.booleans())
def test_looks_count(zone: ZoneId, gaps_s: list[float], was_shut: bool) -> None:
    looked, stayed = (Survival(SurvivalSettings(), OFFERS) for _ in range(2))
    if was_shut:
        looked.refuse(zone)
        stayed.refuse(zone)
    now_s = 0.0
    for gap_s in [0.0, *gaps_s]:
        now_s += gap_s
        looked.admit(zone, now_s)
        stayed.see({zone: 0.0}, now_s)
    ages_h = [survival._age_h(survival._zones[zone], now_s) for survival in (looked, stayed)]
    assert ages_h[0] == pytest.approx(ages_h[1])


def test_zone_that_is_looked_at_is_trusted_and_forgotten_when_nobody_looks() -> None:
    survival, zone = Survival(SurvivalSettings(), OFFERS), ZONES[0]
    survival.refuse(zone)
    survival.admit(zone, 0.0)
    young = survival.estimate_rates_per_h(0.0)[zone]
    for now_s in range(0, 36_000, 1200):
        survival.admit(zone, now_s)
    old = survival.estimate_rates_per_h(36_000.0)[zone]
    assert old < young / 10
    assert survival.estimate_rates_per_h(100_000.0)[zone] > 2 * old


@given(events, zones, st.floats(3600, 100_000))
def test_reclaims_are_remembered(
    happened: list[tuple[ZoneId, str, float]], zone: ZoneId, held_s: float
) -> None:
    survival, held, now_s = replayed(happened)
    held.setdefault(zone, now_s)
    survival.see(held, now_s)
    now_s += held_s
    before = survival.estimate_rates_per_h(now_s)[zone]
    survival.reclaim(zone, 1, 1, now_s)
    assert survival.estimate_rates_per_h(now_s)[zone] > before


@given(zones, st.floats(0, 100_000))
def test_neighbours_are_warned(zone: ZoneId, held_s: float) -> None:
    survival = Survival(SurvivalSettings(), OFFERS)
    survival.see({zone: 0.0}, 0.0)
    survival.reclaim(zone, 1, 1, held_s)
    rates = survival.estimate_rates_per_h(held_s)
    near = {rates[z] for z in ZONES if z[:4] == zone[:4] and z != zone}
    far = {rates[z] for z in ZONES if z[:4] != zone[:4]}
    assert len(far) == 1
    assert min(near) == pytest.approx(max(far) + SurvivalSettings().warning_per_h)


refusals = st.lists(
    st.tuples(
        zones,
        st.sampled_from(["spot", "on-demand"]),
        st.sampled_from(["stock", "quota", "credentials", "other"]),
    ),
    min_size=1,
    max_size=30,
)


def refused(all_of_them: list[tuple[ZoneId, Market, Refusal]]) -> Doors:
    doors = Doors(DoorSettings(), OFFERS)
    for zone, market, reason in all_of_them:
        doors.refuse(Refused(zone, market, reason), 0.0)
    return doors


@given(refusals)
def test_waits_are_bounded(all_of_them: list[tuple[ZoneId, Market, Refusal]]) -> None:
    doors, latest_s = refused(all_of_them), DoorSettings().quota_wait_s
    assert all(doors.is_open(zone, "spot", latest_s) for zone in ZONES)
    stock_only = [(zone, market, "stock") for zone, market, _ in all_of_them]
    doors = refused(stock_only)  # type: ignore[arg-type]  # a literal in a list is a plain str
    assert all(doors.is_open(zone, "spot", DoorSettings().longest_wait_s) for zone in ZONES)


@given(refusals)
def test_refusals_close(all_of_them: list[tuple[ZoneId, Market, Refusal]]) -> None:
    zone, market, _ = all_of_them[-1]
    assert not refused(all_of_them).is_open(zone, market, 1.0)


@given(zones, zones)
def test_quotas_close_regions(zone: ZoneId, other: ZoneId) -> None:
    doors = refused([(zone, "spot", "quota")])
    assert doors.is_open(other, "spot", 1.0) == (other[:4] != zone[:4])
    assert doors.is_open(other, "on-demand", 1.0)


@given(zones, zones)
def test_credentials_close_clouds(zone: ZoneId, other: ZoneId) -> None:
    doors = refused([(zone, "spot", "credentials")])
    assert doors.is_open(other, "on-demand", 1.0) == (other[0] != zone[0])


holdings = st.dictionaries(zones, st.integers(1, 3), max_size=5)
rates = st.fixed_dictionaries(dict.fromkeys(ZONES, chances))


def make_odds(chance: dict[ZoneId, float], collapse: float, together: float) -> Odds:
    return Odds({zone: zone[:4] for zone in ZONES}, chance, collapse, together)


@given(holdings, rates, chances, chances)
def test_chances_add_up(
    held: dict[ZoneId, int], chance: dict[ZoneId, float], collapse: float, together: float
) -> None:
    losses = make_odds(chance, collapse, together).count_losses(held)
    assert len(losses) == sum(held.values()) + 1
    assert sum(losses) == pytest.approx(1)
    assert min(losses) >= -1e-12


@given(holdings, rates, chances, chances, zones, st.integers(0, 8))
def test_more_nodes_are_safer(
    held: dict[ZoneId, int],
    chance: dict[ZoneId, float],
    collapse: float,
    together: float,
    zone: ZoneId,
    needed: int,
) -> None:
    odds, n = make_odds(chance, collapse, together), sum(held.values())
    before = chance_of_fewer(odds.count_losses(held), n, needed)
    more = held | {zone: held.get(zone, 0) + 1}
    assert chance_of_fewer(odds.count_losses(more), n + 1, needed) <= before + 1e-9


@given(holdings, rates, chances, chances, zones, chances, st.integers(0, 8))
def test_worse_zones_are_riskier(
    held: dict[ZoneId, int],
    chance: dict[ZoneId, float],
    collapse: float,
    together: float,
    zone: ZoneId,
    other: float,
    needed: int,
) -> None:
    low, high = sorted((chance[zone], other))
    n = sum(held.values())
    less, more = (
        chance_of_fewer(
            make_odds(chance | {zone: p}, collapse, together).count_losses(held), n, needed
        )
        for p in (low, high)
    )
    assert less <= more + 1e-9


looks = st.lists(st.tuples(st.none() | chances, st.floats(0, 10_000)))


def looked(all_of_them: list[tuple[float | None, float]]) -> tuple[Calibration, float]:
    calibration, now_s = Calibration(), 0.0
    for chance, gap_s in all_of_them:
        now_s += gap_s
        calibration.look(chance, 150.0, now_s)
    return calibration, now_s


@given(looks)
def test_factor_is_bounded(all_of_them: list[tuple[float | None, float]]) -> None:
    calibration, _ = looked(all_of_them)
    assert calibration.least <= calibration.factor <= calibration.most


@given(looks, chances)
def test_surprise_raises(all_of_them: list[tuple[float | None, float]], chance: float) -> None:
    calibration, now_s = looked(all_of_them)
    calibration.look(chance, 150.0, now_s)
    before = calibration.factor
    calibration.look(None, 150.0, now_s)
    assert calibration.factor >= before


@given(looks, chances, st.floats(0, 10_000))
def test_calm_lowers(
    all_of_them: list[tuple[float | None, float]], chance: float, gap_s: float
) -> None:
    calibration, now_s = looked(all_of_them)
    calibration.look(chance, 150.0, now_s)
    before = calibration.factor
    calibration.look(chance, 150.0, now_s + gap_s)
    assert calibration.factor <= before
