"""Invariants of cluster.policy.demand."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.demand import Demand, DemandTarget, Resources, count_fresh, end_idle_first
from cluster.policy.fleet import End, Market, Node, NodeId, ZoneId

_NODES = [NodeId(f"f-{i}") for i in range(8)]
_SHAPE = {"CPU": 8.0, "GPU": 4.0}
_BUNDLES = st.fixed_dictionaries(
    {"CPU": st.sampled_from([0.5, 1.0, 3.0])}, optional={"GPU": st.sampled_from([1.0, 2.0, 4.0])}
)
_TOO_BIG = st.sampled_from([{"CPU": 9.0}, {"GPU": 5.0}, {"TPU": 1.0}])
_FREE = st.fixed_dictionaries(
    {"CPU": st.sampled_from([0.0, 1.0, 4.0]), "GPU": st.sampled_from([0.0, 1.0, 4.0])}
)


@st.composite
def _demands(draw: st.DrawFn) -> Demand:
    waiting = draw(st.lists(_BUNDLES | _TOO_BIG, max_size=12))
    working = draw(st.frozensets(st.sampled_from(_NODES)))
    room = [draw(_FREE) for _ in working]
    return Demand(tuple(waiting), tuple(room), working, draw(st.none() | st.just(_SHAPE)))


def _fits(bundle: Resources, free: Resources) -> bool:
    return all(amount <= free.get(name, 0.0) for name, amount in bundle.items())


@given(st.lists(_demands(), min_size=1), st.integers(0, 4), st.integers(0, 4))
def test_target_stays_within_bounds(demands: Sequence[Demand], least: int, more: int) -> None:
    target = DemandTarget(least, least + more, 60.0, last=9)
    for i, demand in enumerate(demands):
        assert least <= target.aim(demand, 10.0 * i) <= least + more


@given(_demands())
def test_what_waits_gets_room(demand: Demand) -> None:
    """No bin of the packing is overfull, so each kind of resource is enough in all together."""
    if demand.shape is None:
        assert count_fresh(demand) == bool(demand.waiting)
        return
    n_fresh = count_fresh(demand)
    fitting = [bundle for bundle in demand.waiting if _fits(bundle, _SHAPE)]
    for name, amount in _SHAPE.items():
        wanted = sum(bundle.get(name, 0.0) for bundle in fitting)
        there = sum(free.get(name, 0.0) for free in demand.room)
        assert wanted <= there + n_fresh * amount
    assert n_fresh <= len(fitting)


@given(_demands(), st.lists(_TOO_BIG))
def test_what_fits_no_node_asks_for_none(demand: Demand, more: list[Resources]) -> None:
    known = Demand(demand.waiting, demand.room, demand.working, _SHAPE)
    burdened = Demand((*demand.waiting, *more), demand.room, demand.working, _SHAPE)
    assert count_fresh(known) == count_fresh(burdened)


@given(_demands(), st.integers(0, 100))
def test_starting_nodes_count_once(demand: Demand, n_looks: int) -> None:
    target = DemandTarget(0, 100, 60.0)
    first = target.aim(demand, 0.0)
    assert all(target.aim(demand, float(i)) == first for i in range(1, n_looks))


@given(st.lists(_demands(), min_size=2))
def test_work_holds_the_target(demands: Sequence[Demand]) -> None:
    target = DemandTarget(0, 100, 60.0)
    needs, last, shape = [], 0, None
    for i, demand in enumerate(demands):
        shape = demand.shape or shape
        needs.append(len(demand.working) + count_fresh(replace(demand, shape=shape)))
        now = target.aim(demand, 20.0 * i)
        assert now == max(needs[-4:])
        assert now >= last or all(need < last for need in needs[-4:])
        last = now


@given(st.lists(_BUNDLES, min_size=1, max_size=12))
def test_known_nodes_are_remembered(waiting: list[Resources]) -> None:
    new, experienced = DemandTarget(0, 12, 60.0), DemandTarget(0, 12, 60.0)
    experienced.aim(Demand(shape=_SHAPE), 0.0)
    none_there = Demand(tuple(waiting))
    assert new.aim(none_there, 1.0) == 1
    known = Demand(tuple(waiting), shape=_SHAPE)
    assert experienced.aim(none_there, 1.0) == min(count_fresh(known), 12)


_MARKETS: st.SearchStrategy[Market] = st.sampled_from(["spot", "on-demand"])


@given(
    st.lists(st.tuples(_MARKETS, st.booleans()), min_size=8, max_size=8),
    st.frozensets(st.sampled_from(_NODES)),
    st.frozensets(st.sampled_from(_NODES)),
)
def test_nodes_that_work_end_last(
    kinds: list[tuple[Market, bool]], working: frozenset[NodeId], ended: frozenset[NodeId]
) -> None:
    nodes = [
        Node(name, ZoneId(f"z{i % 2}"), market, float(i), is_ready)
        for i, (name, (market, is_ready)) in enumerate(zip(_NODES, kinds, strict=True))
    ]
    market_of = {node.id: node.market for node in nodes}
    ends = end_idle_first([End(name, "spare") for name in sorted(ended)], nodes, working)
    named = [end.node for end in ends]
    assert len(set(named)) == len(ended)
    assert sorted(market_of[n] for n in named) == sorted(market_of[n] for n in ended)
    for node in nodes:
        is_idle = node.is_ready and node.id not in working | set(named)
        assert not is_idle or all(market_of[n] != node.market or n not in working for n in named)
