"""Invariants of serve_app.policy.service_bank."""

import asyncio
from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from serve_app.cell_messages import TellService
from serve_app.names import TenantId
from serve_app.policy.service_bank import ServiceBank
from tests.support.bank_cells import Cell, Fleet

_CELLS, _TENANTS = ("a", "b", "c"), ("x", "y")
_serving = st.tuples(st.sampled_from(_CELLS), st.sampled_from(_TENANTS), st.integers(1, 100))


def _tell(cell: str, served: dict[str, float], run: str = "1", heard: int = 0) -> TellService:
    return TellService(cell, "m", run, "bank", heard, dict(served))


@given(st.lists(_serving))
def test_others_are_told_all(events: list[tuple[str, str, int]]) -> None:
    bank = ServiceBank("bank")
    totals: dict[str, defaultdict[str, float]] = {c: defaultdict(float) for c in _CELLS}
    for cell in _CELLS:
        bank.tell(_tell(cell, {}))
    heard: dict[str, dict[str, float]] = {cell: {} for cell in _CELLS}
    turns = dict.fromkeys(_CELLS, 0)
    for cell, tenant, amount in events:
        totals[cell][tenant] += amount
        answer = bank.tell(_tell(cell, totals[cell], heard=turns[cell]))
        heard[cell] |= answer.served
        turns[cell] = answer.turn
    for cell in _CELLS:
        heard[cell] |= bank.tell(_tell(cell, totals[cell], heard=turns[cell])).served
        for tenant in _TENANTS:
            others = sum(totals[other][tenant] for other in _CELLS if other != cell)
            assert heard[cell].get(tenant, 0.0) == others


@given(st.integers(1, 5), st.integers(1, 100))
def test_saying_again_changes_nothing(n_times: int, amount: int) -> None:
    bank = ServiceBank("bank")
    bank.tell(_tell("a", {}))
    for _ in range(n_times):
        bank.tell(_tell("a", {"x": amount}))
    assert bank.tell(_tell("b", {})).served == {"x": amount}
    bank.tell(_tell("a", {"x": 7.0}, run="2"))  # a router that goes on from a file
    assert bank.tell(_tell("b", {})).served == {"x": amount}
    bank.tell(_tell("a", {"x": 8.0}, run="2"))
    assert bank.tell(_tell("b", {})).served == {"x": amount + 1}


def test_a_router_that_knows_another_bank_is_told_everything() -> None:
    bank = ServiceBank("bank")
    bank.tell(_tell("a", {}))
    turn = bank.tell(_tell("a", {"x": 5.0})).turn
    assert bank.tell(TellService("b", "m", "1", "old", turn, {})).served == {"x": 5.0}
    assert bank.tell(TellService("b", "m", "1", "bank", turn, {})).served == {}


_MOST = 3
_crowd = st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(1, 9), st.booleans()))


@given(_crowd)
def test_few_are_kept(events: list[tuple[bool, int, int, bool]]) -> None:
    """Of many tenants that come and go: whoever knows nothing is told all that is kept."""
    bank = ServiceBank("bank", _MOST)
    totals: defaultdict[str, float] = defaultdict(float)
    name = "bank"
    for is_first, number, amount, _ in events:
        cell, tenant = "ab"[is_first], f"t{number}"
        totals[tenant] += amount
        name = bank.tell(TellService(cell, "m", "1", name, 0, {tenant: totals[tenant]})).bank
        assert len(bank.tell(TellService("c", "m", "1", "", 0, {})).served) <= _MOST + 1


@given(_crowd)
def test_forgetting_charges_nobody(events: list[tuple[bool, int, int, bool]]) -> None:
    """Both forget all the time; what is then served is told again."""

    async def run() -> None:
        fleet = Fleet(_MOST)
        east, west = Cell("east", fleet), Cell("west", fleet)
        served = {cell.cell: Counter[TenantId]() for cell in (east, west)}
        for cell in (east, west):
            await cell.exchange()
        for is_first, number, amount, exchanges in events:
            cell, tenant = (east, west)[is_first], TenantId(f"t{number}")
            cell.serve(tenant, amount)
            served[cell.cell][tenant] += amount
            if exchanges:
                await east.exchange()
                await west.exchange()
            for one, other in ((east, west), (west, east)):
                assert not one.charged - served[other.cell]
        for _ in range(4):  # With the first the bank may forget; two more, and all know.
            before = east.charged[TenantId("last")]
            west.serve(TenantId("last"), 5)
            await west.exchange()
            await east.exchange()
        assert east.charged[TenantId("last")] == before + 5

    asyncio.run(run())
