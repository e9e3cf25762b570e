"""Invariants of cluster.policy.reconcile."""

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from cluster.policy.fleet import Launched, Market, NodeId, Reclaimed, Refused, ZoneId
from cluster.policy.reconcile import (
    Entry,
    Machine,
    MachineState,
    Patience,
    Pulse,
    Reconciled,
    count_nodes,
    reconcile,
)

_PATIENCE = Patience(grace_s=60.0, start_s=600.0, silence_s=50.0, unready_s=400.0)
_ZONES = st.sampled_from([ZoneId("x/east/a"), ZoneId("y/west/a")])
_MARKETS: st.SearchStrategy[Market] = st.sampled_from(["spot", "on-demand"])
_STATES: st.SearchStrategy[MachineState] = st.sampled_from(["starting", "up", "refused", "gone"])
_IDS = [NodeId(f"f-{i}") for i in range(6)]
_TIMES = st.floats(0.0, 2_000.0)


@st.composite
def _machines(draw: st.DrawFn) -> list[Machine]:
    ids = draw(st.lists(st.sampled_from(_IDS), unique=True))
    return [Machine(i, draw(_ZONES), draw(_MARKETS), draw(_STATES), draw(_TIMES)) for i in ids]


@st.composite
def _entries(draw: st.DrawFn) -> list[Entry]:
    ids = draw(st.lists(st.sampled_from(_IDS), unique=True))
    found = []
    for name in ids:
        asked_s = draw(_TIMES)
        up_s = draw(st.none() | st.just(asked_s + 10))
        ready_s = draw(st.none() | st.just(asked_s + 20)) if up_s is not None else None
        leaves_s = draw(st.none() | _TIMES)
        is_taken = leaves_s is not None and draw(st.booleans())
        entry = Entry(name, draw(_ZONES), draw(_MARKETS), asked_s, 1.0, "", up_s, ready_s)
        found.append(
            Entry(**{**vars(entry), "leaves_s": leaves_s, "is_taken": is_taken})
            if leaves_s is not None
            else entry
        )
    return found


_PULSES = st.dictionaries(
    st.sampled_from(_IDS),
    st.builds(Pulse, st.none() | _TIMES, is_ready=st.booleans()),
)


def _run(
    entries: Sequence[Entry],
    machines: Sequence[Machine],
    pulses: Mapping[NodeId, Pulse],
    now_s: float,
) -> Reconciled:
    return reconcile(entries, machines, pulses, now_s, _PATIENCE)


@given(_entries(), _machines(), _PULSES, _TIMES)
def test_machines_are_known(
    entries: list[Entry], machines: list[Machine], pulses: dict[NodeId, Pulse], now_s: float
) -> None:
    after = {entry.id for entry in _run(entries, machines, pulses, now_s).entries}
    assert {m.id for m in machines if m.state in ("starting", "up")} <= after


@given(_entries(), st.lists(st.tuples(_machines(), _PULSES, st.floats(0.0, 300.0)), max_size=6))
def test_news_is_told_once(
    entries: list[Entry], sights: list[tuple[list[Machine], dict[NodeId, Pulse], float]]
) -> None:
    now_s, known = 1_000.0, list(entries)
    for machines, pulses, wait_s in sights:
        now_s += wait_s
        seen = _run(known, machines, pulses, now_s)
        before = {entry.id: entry for entry in known}
        after = {entry.id: entry for entry in [*seen.entries, *seen.lost]}
        newly_taken = [
            e
            for e in after.values()
            if e.is_taken and not (e.id in before and before[e.id].is_taken)
        ]
        n_told = sum(n.n_nodes for n in seen.happenings if isinstance(n, Reclaimed))
        assert n_told == sum(e.market == "spot" for e in newly_taken)
        n_up = sum(
            e.up_s is not None and not (e.id in before and before[e.id].up_s is not None)
            for e in after.values()
        )
        assert sum(isinstance(n, Launched) for n in seen.happenings) == n_up
        given_up = [
            e
            for e in after.values()
            if e.leaves_s is not None
            and not e.is_taken
            and e.ready_s is None
            and not (e.id in before and before[e.id].leaves_s is not None)
        ]
        assert sum(isinstance(n, Refused) for n in seen.happenings) == len(given_up)
        known = list(seen.entries)


@given(_entries(), _machines(), _PULSES, _TIMES)
def test_leaving_nodes_do_not_count(
    entries: list[Entry], machines: list[Machine], pulses: dict[NodeId, Pulse], now_s: float
) -> None:
    seen = _run(entries, machines, pulses, now_s)
    counted = {node.id for node in count_nodes(seen.entries)}
    leaving = {e.id for e in seen.entries if e.leaves_s is not None}
    drained = {node for node, pulse in pulses.items() if pulse.leaves_s is not None}
    up = {m.id for m in machines if m.state == "up"}
    assert not counted & leaving
    assert not counted & drained & up


@given(_entries(), _machines(), _PULSES, _TIMES)
def test_the_paid_is_not_forgotten(
    entries: list[Entry], machines: list[Machine], pulses: dict[NodeId, Pulse], now_s: float
) -> None:
    seen = _run(entries, machines, pulses, now_s)
    paid = {m.id for m in machines if m.state != "refused"}
    assert not paid & {entry.id for entry in seen.lost}
    fresh = {e.id for e in entries if e.up_s is None and now_s - e.asked_s <= _PATIENCE.grace_s}
    refused = {m.id for m in machines if m.state == "refused"}
    assert fresh - refused <= {entry.id for entry in seen.entries}


@given(_entries(), _machines(), _PULSES, _TIMES)
def test_again_is_the_same(
    entries: list[Entry], machines: list[Machine], pulses: dict[NodeId, Pulse], now_s: float
) -> None:
    first = _run(entries, machines, pulses, now_s)
    second = _run(first.entries, machines, pulses, now_s)
    assert second.entries == first.entries
    assert second.happenings == ()


_SIGNS = st.lists(
    st.tuples(st.sampled_from(["ready", "unready", "silent"]), st.floats(1.0, 120.0)), max_size=15
)


@given(_SIGNS)
def test_who_answers_is_given_time(signs: list[tuple[str, float]]) -> None:
    now_s = served_s = heard_s = 1_000.0
    machine = Machine(_IDS[0], ZoneId("x/east/a"), "spot", "up", 900.0)
    known = Entry(_IDS[0], machine.zone, "spot", 900.0, up_s=950.0, ready_s=now_s)
    for sign, wait_s in signs:
        now_s += wait_s
        pulses = {} if sign == "silent" else {_IDS[0]: Pulse(is_ready=sign == "ready")}
        # From the look at which it is first missed.
        served_s = now_s if sign == "ready" or known.silent_s is None else served_s
        heard_s = now_s if sign != "silent" or known.silent_s is None else heard_s
        [known] = _run([known], [machine], pulses, now_s).entries
        is_given_up = now_s - served_s > _PATIENCE.unready_s
        is_given_up |= now_s - heard_s > _PATIENCE.silence_s
        assert (known.leaves_s is not None) == is_given_up
        if is_given_up:
            return
