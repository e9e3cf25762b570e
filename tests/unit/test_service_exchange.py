"""Two routers' counters and the bank between them, over links in memory."""

from serve_app.names import TenantId
from serve_app.policy.service_bank import ServiceBank
from tests.support.bank_cells import Cell, Fleet
from tests.support.batch_engine import always, make_request

X, Y = TenantId("x"), TenantId("y")


async def begin(fleet: Fleet) -> tuple[Cell, Cell]:
    east, west = Cell("east", fleet), Cell("west", fleet)
    for cell in (east, west) * 2:  # to hear of the bank, and to tell it where this begins
        await cell.exchange()
    return east, west


async def test_what_one_cell_serves_is_charged_in_the_other_once() -> None:
    east, west = await begin(Fleet())
    east.serve(Y, 30)
    for _ in range(3):
        await east.exchange()
        await west.exchange()
    assert west.counter(Y) == 30
    assert east.counter(Y) == 30
    assert west.queue.take_served() == {}
    west.serve(Y, 12)
    await west.exchange()
    await east.exchange()
    assert (east.counter(Y), west.counter(Y)) == (42, 42)


async def test_what_is_served_while_the_bank_is_away_is_charged_later() -> None:
    fleet = Fleet()
    east, west = await begin(fleet)
    fleet.is_away = True
    east.serve(X, 7)
    await east.exchange()
    fleet.is_away = False
    await east.exchange()
    await west.exchange()
    assert west.counter(X) == 7


async def test_a_bank_that_starts_anew_charges_nobody_twice() -> None:
    fleet = Fleet()
    east, west = await begin(fleet)
    east.serve(X, 50)
    await east.exchange()
    await west.exchange()
    fleet.bank = ServiceBank("second")
    for _ in range(2):
        await east.exchange()
        await west.exchange()
    assert west.counter(X) == 50
    east.serve(X, 5)
    await east.exchange()
    await west.exchange()
    assert west.counter(X) == 55


async def test_a_router_that_starts_anew_owes_nothing_for_what_was_before() -> None:
    fleet = Fleet()
    east, west = await begin(fleet)
    east.serve(X, 50)
    await east.exchange()
    west = Cell("west", fleet)
    west.run = "2"
    await west.exchange()
    assert west.counter(X) == 0
    east.serve(X, 5)
    await east.exchange()
    await west.exchange()
    assert west.counter(X) == 5


async def test_what_was_predicted_and_given_back_is_charged_once() -> None:
    fleet = Fleet()
    east, west = await begin(fleet)
    east._n += 1
    east.queue.arrive(make_request("t", X, 40), 0.0)
    east.queue.admit(always, 0.0)
    await east.exchange()
    await west.exchange()
    assert west.counter(X) == 40
    east.queue.abort(make_request("t", X, 40).ticket, is_computed=False)
    await east.exchange()
    await west.exchange()
    east.serve(X, 45)
    await east.exchange()
    await west.exchange()
    assert west.counter(X) == 45


async def test_a_router_that_has_served_too_many_counts_anew_and_loses_nothing() -> None:
    fleet = Fleet(most_tenants=3)
    fleet.bank = ServiceBank("first")  # which keeps many
    east, west = await begin(fleet)
    for _ in range(2):
        for i in range(10):
            east.serve(TenantId(f"t{i}"), 7)
            await east.exchange()
            await west.exchange()
    assert [west.counter(TenantId(f"t{i}")) for i in range(10)] == [14.0] * 10
    assert east.most_told == 1


async def test_a_router_without_a_bank_keeps_few_sums_too() -> None:
    fleet = Fleet(most_tenants=3)
    east, _ = await begin(fleet)
    fleet.is_away = True
    for i in range(10):
        east.serve(TenantId(f"t{i}"), 7)
        await east.exchange()
    fleet.is_away = False
    await east.exchange()
    assert east.most_told <= 4
