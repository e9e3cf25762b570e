"""Invariants of `serve_app.policy.peers`."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve_app.messages import TicketId
from serve_app.names import TenantId
from serve_app.policy.peers import Haven, Homeless, find_havens

_DIALECTS = st.sampled_from(("a", "b"))
_HAVENS = st.dictionaries(
    st.sampled_from(("http://one", "http://two", "http://three", "http://four")),
    st.builds(Haven, _DIALECTS, st.integers(-3, 6), st.booleans()),
)
_HOMELESS = st.lists(
    st.builds(
        Homeless,
        st.integers(0, 99).map(lambda n: TicketId(f"t{n}")),
        st.sampled_from("xyz").map(TenantId),
        st.sampled_from(("", "a", "b")),
        st.booleans(),
    ),
    max_size=20,
    unique_by=lambda request: request.ticket,
)


@given(_HOMELESS, _HAVENS)
def test_only_where_it_is_understood(homeless: list[Homeless], havens: dict[str, Haven]) -> None:
    found = find_havens(homeless, havens)
    for request in homeless:
        if request.ticket in found:
            haven = havens[found[request.ticket]]
            assert request.dialect in ("", haven.dialect)
            assert haven.knows_adapters or not request.has_adapter


@given(_HOMELESS, _HAVENS)
def test_nobody_is_left_out_whom_a_cell_can_have(
    homeless: list[Homeless], havens: dict[str, Haven]
) -> None:
    able = {r.ticket for r in homeless if any(h.takes(r) for h in havens.values())}
    assert set(find_havens(homeless, havens)) == able


@given(_HOMELESS, _HAVENS)
def test_home_comes_first(homeless: list[Homeless], havens: dict[str, Haven]) -> None:
    home = Haven("a", -5, knows_adapters=True, is_home=True)
    found = find_havens(homeless, havens | {"": home})
    assert all(found[r.ticket] == "" for r in homeless if home.takes(r))


@given(_HOMELESS, _HAVENS)
def test_room_is_used_before_anyone_waits(
    homeless: list[Homeless], havens: dict[str, Haven]
) -> None:
    anyone = [Homeless(request.ticket, request.tenant) for request in homeless]
    taken = Counter(find_havens(anyone, havens).values())
    lacking = any(taken[name] > max(haven.room, 0) for name, haven in havens.items())
    assert not lacking or all(taken[name] >= haven.room for name, haven in havens.items())


@given(st.sampled_from("xyz"), _HAVENS)
def test_a_tenant_finds_its_cell_again(tenant: str, havens: dict[str, Haven]) -> None:
    roomy = {name: Haven(h.dialect, 5) for name, h in havens.items()}
    requests = [Homeless(TicketId(f"t{i}"), TenantId(tenant)) for i in range(3)]
    assert len(set(find_havens(requests, roomy).values())) == min(1, len(roomy))
    # Another cell that goes moves nobody.
    for gone in roomy:
        chosen = find_havens(requests, roomy)[TicketId("t0")]
        rest = {name: haven for name, haven in roomy.items() if name != gone}
        if gone != chosen:
            assert find_havens(requests, rest)[TicketId("t0")] == chosen
