import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.objective import Pace, Waiters, count_before, lateness_of

weights = st.sampled_from([0.5, 1.0, 2.0, 4.0])
tiers = st.integers(0, 2)
waiters = st.builds(Waiters, st.integers(1, 1000), weights, tiers)
others = st.lists(waiters, max_size=8)
paces = st.floats(0.1, 1e4)
objectives = st.floats(0.1, 600)


@given(weights, tiers, others, paces, objectives)
def test_first_of_a_tenant_may_wait(
    weight: float, tier: int, those: list[Waiters], pace: float, objective_s: float
) -> None:
    not_above = [other for other in those if other.tier >= tier]
    n_before = count_before(Waiters(1, weight, tier), not_above)
    assert n_before == 0
    assert lateness_of(n_before, pace, objective_s) is None


@given(st.floats(0, 1e6), objectives)
def test_no_refusal_without_evidence(n_before: float, objective_s: float) -> None:
    assert lateness_of(n_before, None, objective_s) is None
    assert Pace().turns_per_s() is None


@given(waiters, others, waiters, paces, objectives)
def test_more_before_means_longer(
    own: Waiters, those: list[Waiters], another: Waiters, pace: float, objective_s: float
) -> None:
    before = count_before(own, those)
    more = count_before(own, [*those, another])
    later = count_before(Waiters(own.n + 1, own.weight, own.tier), those)
    assert before <= more
    assert before < later
    late_s = lateness_of(before, pace, objective_s)
    assert late_s is None or late_s <= (lateness_of(more, pace, objective_s) or 0.0)


@given(st.integers(8, 100), st.floats(0.01, 0.5), st.integers(0, 10**6))
def test_pace_is_what_was_handed_out(n: int, every_s: float, before: int) -> None:
    pace = Pace()
    for i in range(n + 1):
        pace.note(1000.0 + i * every_s, before + i)
    if n * every_s >= 1.01:
        found = pace.turns_per_s()
        assert found is not None or 10 / every_s < 8
        assert found is None or found == pytest.approx(1 / every_s)
    pace.clear()
    assert pace.turns_per_s() is None


def test_pace_forgets_what_was_long_ago() -> None:
    pace = Pace()
    for second in range(100):
        pace.note(float(second), 100 * min(second, 50) + max(second - 50, 0))
    assert pace.turns_per_s() == pytest.approx(1.0)
