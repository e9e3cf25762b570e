"""Invariants of `serve_app.policy.adapter_tier`."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve_app.names import TenantId
from serve_app.policy.adapter_tier import Held, choose_victim

_TENANTS = st.sampled_from("abcd").map(TenantId)
_FLOOR = st.integers(0, 6)


def _memory(max_using: int = 2) -> st.SearchStrategy[list[Held]]:
    held = st.builds(
        Held,
        id=st.integers(1, 99),
        tenant=_TENANTS,
        n_using=st.integers(0, max_using),
        uses=st.floats(0, 10),
        load_s=st.floats(0.001, 5),
        used_s=st.integers(0, 20).map(float),
        is_ahead=st.booleans(),
    )
    return st.lists(held, min_size=1, max_size=12, unique_by=lambda adapter: adapter.id)


@given(_memory(), _TENANTS, _FLOOR)
def test_in_use_stays(held: list[Held], newcomer: TenantId, floor: int) -> None:
    victim = choose_victim(held, newcomer, len(held), floor)
    assert victim is None or victim.n_using == 0


@given(_memory(), _TENANTS, _FLOOR)
def test_floor_is_kept(held: list[Held], newcomer: TenantId, floor: int) -> None:
    victim = choose_victim(held, newcomer, len(held), floor)
    counts = Counter(adapter.tenant for adapter in held)
    share = len(held) // len({*counts, newcomer})
    if victim is not None and victim.tenant != newcomer:
        assert counts[victim.tenant] - 1 >= min(floor, share)


@given(_memory(), _TENANTS, _FLOOR)
def test_least_worth_goes(held: list[Held], newcomer: TenantId, floor: int) -> None:
    victim = choose_victim(held, newcomer, len(held), floor)
    if victim is None:
        return
    same_tenant = [a for a in held if a.tenant == victim.tenant and a.n_using == 0]
    of_newcomer = [a for a in held if a.tenant == newcomer and a.n_using == 0]
    assert all(victim.worth <= adapter.worth for adapter in same_tenant + of_newcomer)


@given(_memory(max_using=0), _TENANTS, _FLOOR)
def test_somebody_goes(held: list[Held], newcomer: TenantId, floor: int) -> None:
    assert choose_victim(held, newcomer, len(held), floor) is not None
    assert choose_victim(held[::-1], newcomer, len(held), floor) == choose_victim(
        held, newcomer, len(held), floor
    )


@given(_memory(), _TENANTS, _FLOOR)
def test_ahead_goes_last(held: list[Held], newcomer: TenantId, floor: int) -> None:
    victim = choose_victim(held, newcomer, len(held), floor)
    if victim is not None and victim.is_ahead:
        others = [a for a in held if not a.is_ahead]
        of_newcomer = [a for a in others if a.tenant == newcomer and a.n_using == 0]
        assert not of_newcomer
        assert not [a for a in others if a.tenant == victim.tenant and a.n_using == 0]
