"""The order in which an engine starts what it holds: every invariant of `EngineTurns`."""

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.messages import Standing, TicketId
from serve_app.names import TenantId
from serve_app.policy.engine_turns import EngineTurns

TENANTS = [TenantId(name) for name in "abc"]
arrivals = st.lists(
    st.tuples(st.sampled_from(TENANTS), st.integers(0, 50)), min_size=1, max_size=20
)
first_counters = st.fixed_dictionaries({tenant: st.integers(0, 200) for tenant in TENANTS})


class Router:
    """Grants requests to one engine and charges them as it does."""

    def __init__(self, counters: dict[TenantId, int]) -> None:
        self.counters = dict(counters)
        self.turns = EngineTurns()
        self.tenant_of: dict[TicketId, TenantId] = {}
        self.n_sent = 0

    def grant(
        self, tenant: TenantId, charged: int, tier: int = 0, *, is_express: bool = False
    ) -> TicketId:
        self.n_sent += 1
        ticket = TicketId(f"{self.n_sent:03}")
        self.tenant_of[ticket] = tenant
        self.counters[tenant] += charged
        standing = Standing(tenant, tier, self.counters[tenant], charged, is_express)
        self.turns.arrive(ticket, standing)
        return ticket

    def start(self) -> TicketId:
        ticket = self.turns.next()
        assert ticket is not None
        self.turns.take(ticket)
        self.turns.start(ticket)
        return ticket

    def effective(self) -> dict[TenantId, int]:
        return {tenant: self.turns.counter_of(tenant) for tenant in self.tenant_of.values()}


@given(first_counters, arrivals)
def test_least_counter_starts(
    counters: dict[TenantId, int], requests: list[tuple[TenantId, int]]
) -> None:
    router = Router(counters)
    for request in requests:
        router.grant(*request)
    while len(router.turns):
        waiting = list(router.turns)
        before = router.effective()
        ticket = router.start()
        assert ticket == min(
            waiting, key=lambda t: (before[router.tenant_of[t]], router.tenant_of[t], t)
        )


@given(first_counters, arrivals, st.integers(0, 20))
def test_looking_costs_nothing(
    counters: dict[TenantId, int], requests: list[tuple[TenantId, int]], n: int
) -> None:
    router = Router(counters)
    for request in requests:
        router.grant(*request)
    order, before = list(router.turns), router.effective()
    aside: list[TicketId] = []
    while len(aside) < n and (ticket := router.turns.next()) is not None:
        router.turns.take(ticket)
        aside.append(ticket)
    assert router.effective() == before
    for ticket in reversed(aside):
        router.turns.put_back(ticket)
    assert (list(router.turns), router.effective()) == (order, before)


@given(first_counters, arrivals, st.integers(1, 3))
def test_start_is_charged_once(
    counters: dict[TenantId, int], requests: list[tuple[TenantId, int]], times: int
) -> None:
    router = Router(counters)
    for request in requests:
        router.grant(*request)
    ticket = router.start()
    before = router.effective()
    for _ in range(times):
        router.turns.put_back(ticket)
        assert router.start() == ticket, "who was preempted goes first"
    assert router.effective() == before


@settings(deadline=None)
@given(first_counters, arrivals, st.data())
def test_started_equals_router(
    counters: dict[TenantId, int], requests: list[tuple[TenantId, int]], data: st.DataObject
) -> None:
    router = Router(counters)
    for request in requests:
        router.grant(*request)
        while len(router.turns) and data.draw(st.booleans()):
            router.start()
        if data.draw(st.booleans()):
            router.turns.synchronise(router.counters)
    while len(router.turns):
        router.start()
    expected = {tenant: router.counters[tenant] for tenant in router.tenant_of.values()}
    assert router.effective() == expected


def test_preempted_go_first_and_the_least_counter_first_of_them() -> None:
    router = Router({TENANTS[0]: 100, TENANTS[1]: 0, TENANTS[2]: 0})
    high, low = router.grant(TENANTS[0], 1), router.grant(TENANTS[1], 1)
    assert [router.start(), router.start()] == [low, high]
    router.grant(TENANTS[2], 1)
    router.turns.put_back(high)
    router.turns.put_back(low)
    assert [router.start(), router.start()] == [low, high]


def test_greatest_counter_of_the_lowest_tier_is_preempted_first() -> None:
    router = Router({TENANTS[0]: 5, TENANTS[1]: 10, TENANTS[2]: 1})
    tickets = [router.grant(TENANTS[0], 1), router.grant(TENANTS[1], 1)]
    tickets.append(router.grant(TENANTS[2], 1, tier=1))
    for _ in tickets:
        router.start()
    assert sorted(tickets, key=router.turns.rank_of) == tickets


def test_lower_tier_gets_its_floor_and_no_more() -> None:
    router = Router(dict.fromkeys(TENANTS, 0))
    for _ in range(50):
        router.grant(TENANTS[0], 10_000_000)
        router.grant(TENANTS[1], 10_000_000, tier=1)
    first = [router.tenant_of[router.start()] for _ in range(40)]
    assert 3 <= first.count(TENANTS[1]) <= 5


def test_aborted_request_costs_nothing_and_the_ended_are_forgotten() -> None:
    router = Router({TENANTS[0]: 3, TENANTS[1]: 0, TENANTS[2]: 0})
    kept, ticket = router.grant(TENANTS[0], 2), router.grant(TENANTS[0], 7)
    router.turns.take(ticket)
    router.turns.end(ticket)
    assert router.turns.counter_of(TENANTS[0]) == 3
    router.start()
    router.turns.end(kept)
    router.turns.end(kept)
    router.turns.synchronise(router.counters)
    assert router.turns.counter_of(TENANTS[0]) == 0


@given(
    first_counters,
    st.lists(
        st.tuples(st.sampled_from(TENANTS), st.integers(0, 50), st.integers(0, 1), st.booleans()),
        min_size=1,
        max_size=24,
    ),
    st.integers(1, 6),
)
def test_yields_once(
    counters: dict[TenantId, int],
    requests: list[tuple[TenantId, int, int, bool]],
    n_places: int,
) -> None:
    """An engine of few places, to which some requests are sent as express."""
    router = Router(counters)
    turns, running, tiers = router.turns, set[TicketId](), dict[TicketId, int]()
    has_yielded: set[TicketId] = set()
    for tenant, charged, tier, is_express in requests:
        ticket = router.grant(tenant, charged, tier, is_express=is_express)
        tiers[ticket] = tier
        for newcomer in turns.waiting_express():
            yielding = turns.choose_yielding(newcomer) if len(running) == n_places else None
            if yielding is None:
                continue
            assert yielding in running
            assert yielding not in has_yielded
            assert tiers[yielding] >= tiers[newcomer]
            if tiers[yielding] == tiers[newcomer]:
                got = router.effective()
                assert got[router.tenant_of[yielding]] >= got[router.tenant_of[newcomer]]
            turns.give_place(yielding)
            turns.put_back(yielding)
            has_yielded.add(yielding)
            running.discard(yielding)
            assert turns.next() in turns.waiting_express(), "it is for them that it yields"
        while len(running) < n_places and len(turns):
            running.add(router.start())
