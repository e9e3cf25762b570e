"""Invariants of cluster.policy.spending."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.fleet import Market, ZoneId
from cluster.policy.spending import Stay, share_spending, sum_spending

_HOUR_S = 3600.0
_MARKETS: st.SearchStrategy[Market] = st.sampled_from(["spot", "on-demand"])
_SPANS = st.floats(0.0, 100_000.0)


@st.composite
def _stays(draw: st.DrawFn) -> list[Stay]:
    found = []
    for _ in range(draw(st.integers(0, 5))):
        up_s = draw(_SPANS)
        ready_s = draw(st.none() | st.floats(0.0, 5_000.0))
        stopped_s = draw(st.none() | st.floats(0.0, 20_000.0))
        gone_s = draw(st.none() | st.floats(0.0, 5_000.0))
        ready_at = None if ready_s is None else up_s + ready_s
        stopped_at = None if stopped_s is None else (ready_at or up_s) + stopped_s
        gone_at = None if gone_s is None else (stopped_at or ready_at or up_s) + gone_s
        usd_per_h = draw(st.floats(0.0, 100.0))
        found.append(
            Stay(
                ZoneId("x/east/a"),
                draw(_MARKETS),
                usd_per_h,
                usd_per_h * 3,
                up_s,
                ready_at,
                stopped_at,
                gone_at,
            )
        )
    return found


_TOKENS = st.dictionaries(st.sampled_from("abc"), st.floats(0.0, 1e9), max_size=3)


@given(_stays(), _SPANS, _SPANS, _TOKENS, st.none() | st.floats(1.0, 1e7))
def test_shares_add_up(
    stays: list[Stay], a_s: float, b_s: float, tokens: dict[str, float], able: float | None
) -> None:
    spending = sum_spending(stays, min(a_s, b_s), max(a_s, b_s))
    shares = share_spending(spending, tokens, able)
    total = sum(shares.by_tenant.values()) + shares.idle_usd + shares.wasted_usd
    assert total == pytest.approx(spending.usd, rel=1e-6, abs=1e-6)
    assert all(usd >= 0 for usd in [*shares.by_tenant.values(), shares.idle_usd])


@given(_stays(), _TOKENS, st.none() | st.floats(1.0, 1e7))
def test_more_tokens_cost_more(
    stays: list[Stay], tokens: dict[str, float], able: float | None
) -> None:
    shares = share_spending(sum_spending(stays, 0.0, 200_000.0), tokens, able).by_tenant
    by_tokens = sorted(shares, key=lambda tenant: tokens[tenant])
    assert [shares[tenant] for tenant in by_tokens] == sorted(shares.values())


@given(_stays(), _SPANS, _SPANS, _SPANS)
def test_spans_add_up(stays: list[Stay], a_s: float, b_s: float, c_s: float) -> None:
    first, middle, last = sorted([a_s, b_s, c_s])
    whole = sum_spending(stays, first, last)
    parts = [sum_spending(stays, first, middle), sum_spending(stays, middle, last)]
    for name in ("spot_usd", "on_demand_usd", "wasted_usd", "all_on_demand_usd", "serving_h"):
        summed = sum(getattr(part, name) for part in parts)
        assert summed == pytest.approx(getattr(whole, name), rel=1e-6, abs=1e-6)


def test_node_that_served_half_of_its_hour_has_wasted_half() -> None:
    stay = Stay(ZoneId("z"), "spot", 2.0, 6.0, 0.0, _HOUR_S / 2, None, _HOUR_S)
    spending = sum_spending([stay], 0.0, _HOUR_S)
    assert (spending.usd, spending.wasted_usd, spending.all_on_demand_usd) == (2.0, 1.0, 6.0)
    shares = share_spending(spending, {"a": 30.0, "b": 10.0}, tokens_per_h=160.0)
    assert shares.by_tenant == {"a": pytest.approx(0.375), "b": pytest.approx(0.125)}
    assert shares.idle_usd == pytest.approx(0.5)
