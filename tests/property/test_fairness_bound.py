from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.names import TenantId
from serve_app.policy.fairness_bound import Capacity, GapMeter, bound_counters, bound_gap
from serve_app.policy.fairness_options import Cost

TENANTS = [TenantId(name) for name in "abc"]
capacities = st.builds(
    Capacity, st.integers(1, 10_000), st.integers(1, 10**6), st.integers(0, 10_000)
)


@settings(deadline=None)
@given(capacities, st.floats(0, 1e6))
def test_bound_grows_by_the_quantum(capacity: Capacity, quantum: float) -> None:
    plain = bound_counters(Cost(), capacity)
    assert bound_counters(Cost(), capacity, slack=quantum) == pytest.approx(plain + quantum)
    assert bound_gap(Cost(), capacity, slack=quantum) == pytest.approx(2 * (plain + quantum))


def test_bound_is_the_papers() -> None:
    """16 sequences of 64 output tokens: U = 2048."""
    assert bound_counters(Cost(), Capacity(512, 16 * 64)) == 2048
    assert bound_gap(Cost(), Capacity(512, 16 * 64)) == 4096
    assert bound_counters(Cost(prompt=1, output=1), Capacity(512, 16)) == 512


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), min_size=3, max_size=3), st.sets(st.sampled_from(TENANTS))
        ),
        max_size=25,
    )
)
def test_meter_agrees_with_definition(events: list[tuple[list[int], set[TenantId]]]) -> None:
    meter = GapMeter()
    history: list[tuple[dict[TenantId, float], set[TenantId]]] = []
    service = dict.fromkeys(TENANTS, 0.0)
    for served, backlogged in events:
        service = {t: service[t] + n for t, n in zip(TENANTS, served, strict=True)}
        meter.observe(service, backlogged)
        history.append((service, backlogged))
    worst = 0.0
    for start, end in combinations(range(len(history)), 2):
        both = set.intersection(*(who for _, who in history[start : end + 1]))
        for one, other in combinations(sorted(both), 2):
            first, last = history[start][0], history[end][0]
            gap = abs((last[one] - first[one]) - (last[other] - first[other]))
            worst = max(worst, gap)
    assert meter.worst == worst
