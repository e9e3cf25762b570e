"""Invariants of cluster.policy.reasons."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.cover import Cover
from cluster.policy.inventory import Inventory
from cluster.policy.reasons import explain_on_demand, explain_plan

_SHUT = st.lists(st.tuples(st.sampled_from(["aws", "gcp/r1 spot"]), st.floats(0.1, 3_600.0)))


@given(_SHUT, st.booleans())
def test_what_is_shut_is_named(shut: list[tuple[str, float]], is_awaited: bool) -> None:
    said = explain_plan(Inventory.of([]), Cover(1, 1.0, 0.5), is_awaited, shut)
    assert ("not asked for now" in said) == bool(shut)
    assert all(name in said for name, _ in shut[:5])
    assert ("more" in said) == (len(shut) > 5)
    assert "(0 min)" not in said


def test_why_a_node_is_on_demand_depends_on_what_spot_there_is() -> None:
    assert "no zone" in explain_on_demand(has_spot=True, is_open=False, n_wanted=2)
    assert "covers" in explain_on_demand(has_spot=True, is_open=True, n_wanted=2)
    assert "cheaper" in explain_on_demand(has_spot=False, is_open=True, n_wanted=2)
