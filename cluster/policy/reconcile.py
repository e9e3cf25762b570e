"""Compares what is written down of a fleet's nodes with what clouds and Ray say of them.

Inputs: the entries that are written down, the machines that the provisioner lists, a pulse of each
node that serves, the time.

The rule:
  - A machine that nobody has written down is adopted: a controller that died may have asked for it.
  - The first sight of a machine that is up is a launch; one that is refused, or never serves, is a
    refusal; one that served and is gone, or drains without our order, is a reclaim. Each is told
    once.
  - A node that has served and answers that it does not may come round: it is broken only after
    `unready_s`, one that says nothing after `silence_s`.
  - What is taken, ended or broken is not counted any more, and released once it is drained.
  - An entry goes when its machine is no longer listed, or has never been for `grace_s`.

Invariants:
  1. machines_are_known: every machine that is paid for is an entry afterwards.
  2. news_is_told_once: what was told is not told again, whatever is seen.
  3. leaving_nodes_do_not_count: no node that is taken or ended is handed to the placement policy.
  4. the_paid_is_not_forgotten: an entry goes only if no machine of that name is paid for.
  5. again_is_the_same: the same sight a second time changes nothing and tells nothing.
  6. who_answers_is_given_time: no node that has served is given up while it has answered within
     `silence_s` and served within `unready_s`.

Source: our own; the shape is that of controllers that compare wanted and observed state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cluster.policy.fleet import (
    Happening,
    Launched,
    Market,
    Node,
    NodeId,
    Reclaimed,
    Refusal,
    Refused,
    ZoneId,
)

MachineState = Literal["starting", "up", "refused", "gone"]
"""`refused`: the launch failed, nothing is paid for. `gone`: it was there and has been taken."""


@dataclass(frozen=True)
class Machine:
    """One node as its provisioner lists it.

    Attributes:
        id: The name that it was asked for by.
        zone: Where.
        market: How it is paid.
        state: What has become of it.
        asked_s: When it was asked for.
        refusal: Why it was refused; None in other states.
        text: What the cloud said of it, for people.
        address: Where it is reached; empty while nobody knows.
    """

    id: NodeId
    zone: ZoneId
    market: Market
    state: MachineState
    asked_s: float
    refusal: Refusal | None = None
    text: str = ""
    address: str = ""


@dataclass(frozen=True)
class Pulse:
    """A sign of life of what serves on a node. Nodes that do not answer have none.

    Attributes:
        leaves_s: When it stops serving, where it is being drained; None where it is not.
        is_over: Whether it has stopped since.
        is_ready: Whether it serves now; one that answers and does not may be starting something.
    """

    leaves_s: float | None = None
    is_over: bool = False
    is_ready: bool = True

    @property
    def serves(self) -> bool:
        """Whether it does, if only until it leaves."""
        return self.is_ready or self.leaves_s is not None


@dataclass(frozen=True)
class Entry:
    """What is written down of one node, before it is asked for and until it is gone.

    Attributes:
        id: Its name.
        zone: Where.
        market: How it is paid.
        asked_s: When it was asked for.
        usd_per_h: Its price at that time.
        reason: Why it was asked for, for people.
        up_s: When its cloud was first seen to have it; None before.
        ready_s: When it first served; None before.
        silent_s: Since when it does not serve any more; None while it does, or never has.
        heard_s: When it last answered that it does not serve; None if it never has.
        leaves_s: When it is released at the latest; None while it is to stay.
        leaves_why: Why it leaves.
        is_taken: Whether its cloud takes it, rather than we end it.
        is_drained: Whether Ray has been told that it leaves.
    """

    id: NodeId
    zone: ZoneId
    market: Market
    asked_s: float
    usd_per_h: float = 0.0
    reason: str = ""
    up_s: float | None = None
    ready_s: float | None = None
    silent_s: float | None = None
    heard_s: float | None = None
    leaves_s: float | None = None
    leaves_why: str = ""
    is_taken: bool = False
    is_drained: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether it serves, as far as is known."""
        return self.ready_s is not None and self.silent_s is None and self.leaves_s is None


@dataclass(frozen=True)
class Patience:
    """How long things may take, in seconds.

    Attributes:
        grace_s: Until a machine that was asked for is listed.
        start_s: From the launch until it serves; one that takes longer is broken.
        silence_s: For which a machine that is up may not answer; then it is broken.
        unready_s: For which one that answers may not serve.
    """

    grace_s: float = 60.0
    start_s: float = 3600.0
    silence_s: float = 120.0
    unready_s: float = 900.0


@dataclass(frozen=True)
class Reconciled:
    """What is known now.

    Attributes:
        entries: To be written down before anything else is done.
        happenings: For the placement policy.
        releases: Machines to be ended now; asking twice does no harm.
        lost: Entries that are gone for good, as they were.
    """

    entries: tuple[Entry, ...]
    happenings: tuple[Happening, ...]
    releases: tuple[NodeId, ...]
    lost: tuple[Entry, ...]


def reconcile(
    entries: Sequence[Entry],
    machines: Iterable[Machine],
    pulses: Mapping[NodeId, Pulse],
    now_s: float,
    patience: Patience,
) -> Reconciled:
    """Return the entries as they are now, and what has happened to them."""
    listed = {machine.id: machine for machine in machines}
    known = {entry.id for entry in entries}
    adopted = [
        Entry(m.id, m.zone, m.market, m.asked_s, reason="found")
        for m in listed.values()
        if m.id not in known and m.state in ("starting", "up") and m.zone
    ]
    held = [entry for entry in entries if _is_held(entry)]
    kept: list[Entry] = []
    lost: list[Entry] = []
    news: list[Happening] = []
    taken: list[Entry] = []
    for entry in sorted([*entries, *adopted], key=lambda entry: entry.id):
        machine = listed.get(entry.id)
        seen = _look(entry, machine, pulses.get(entry.id), now_s, patience)
        if entry.up_s is None and seen.up_s is not None and machine and machine.state == "up":
            news.append(Launched(entry.zone, entry.market))
        if entry.leaves_s is None and seen.leaves_s is not None and not seen.is_taken:
            news += _refusals(seen, machine)
        if seen.is_taken and not entry.is_taken:
            taken.append(entry)
        (lost if _is_over(seen, machine, now_s, patience) else kept).append(seen)
    news += _reclaims(taken, held)
    releases = [e.id for e in kept if e.leaves_s is not None and _may_go(e, pulses, listed, now_s)]
    releases += [e.id for e in lost if e.id in listed]  # what a refused launch has left behind
    return Reconciled(tuple(kept), tuple(news), tuple(releases), tuple(lost))


def count_nodes(entries: Iterable[Entry]) -> list[Node]:
    """Return the nodes that the placement policy may count on."""
    return [
        Node(e.id, e.zone, e.market, e.asked_s, e.is_ready, e.up_s is not None)
        for e in entries
        if e.leaves_s is None
    ]


def _look(
    entry: Entry, machine: Machine | None, pulse: Pulse | None, now_s: float, patience: Patience
) -> Entry:
    """Return the entry as it is seen now."""
    if machine is not None and machine.state == "up" and entry.up_s is None:
        entry = replace(entry, up_s=now_s)
    if entry.leaves_s is not None:
        return entry
    if machine is None or machine.state in ("refused", "gone"):
        return _miss(entry, machine, now_s)
    if pulse is not None and pulse.serves:
        entry = replace(entry, ready_s=entry.ready_s or now_s, silent_s=None, heard_s=None)
        if pulse.leaves_s is not None:
            return replace(
                entry,
                leaves_s=pulse.leaves_s,
                leaves_why="its cloud takes it",
                is_taken=True,
                is_drained=True,
            )
        return entry
    return _wait(entry, pulse is not None, now_s, patience)


def _miss(entry: Entry, machine: Machine | None, now_s: float) -> Entry:
    """Look at an entry without a machine that could serve."""
    if entry.ready_s is not None:
        return replace(entry, leaves_s=now_s, leaves_why="its cloud has taken it", is_taken=True)
    if machine is None and entry.up_s is None:
        return entry  # asked for a moment ago
    text = (machine.text if machine else "") or "it went before it served"
    return replace(entry, leaves_s=now_s, leaves_why=text)


def _wait(entry: Entry, answers: bool, now_s: float, patience: Patience) -> Entry:
    """Look at an entry whose machine is there and does not serve."""
    if entry.ready_s is None:
        if now_s - entry.asked_s <= patience.start_s:
            return entry
        return replace(entry, leaves_s=now_s, leaves_why="it never served")
    since_s = now_s if entry.silent_s is None else entry.silent_s
    heard_s = now_s if answers else entry.heard_s
    entry = replace(entry, silent_s=since_s, heard_s=heard_s)
    if now_s - max(since_s, heard_s or since_s) > patience.silence_s:
        return replace(entry, leaves_s=now_s, leaves_why="it does not answer any more")
    if now_s - since_s > patience.unready_s:
        return replace(entry, leaves_s=now_s, leaves_why="it answers and does not serve any more")
    return entry


def _is_held(entry: Entry) -> bool:
    return entry.market == "spot" and entry.up_s is not None and entry.leaves_s is None


def _is_over(entry: Entry, machine: Machine | None, now_s: float, patience: Patience) -> bool:
    if machine is not None:
        return machine.state == "refused"
    never_listed = entry.up_s is None and now_s - entry.asked_s > patience.grace_s
    return never_listed or (entry.leaves_s is not None and entry.up_s is not None)


def _may_go(
    entry: Entry, pulses: Mapping[NodeId, Pulse], listed: Mapping[NodeId, Machine], now_s: float
) -> bool:
    """Say whether a leaving node has nothing to do any more, or no time."""
    assert entry.leaves_s is not None
    machine, pulse = listed.get(entry.id), pulses.get(entry.id)
    is_up = machine is not None and machine.state == "up"
    serves = is_up and pulse is not None and pulse.serves and not pulse.is_over
    return not serves or now_s >= entry.leaves_s


def _refusals(entry: Entry, machine: Machine | None) -> list[Happening]:
    """Tell why a node did not come to serve, so that nobody asks again and again for the same."""
    if entry.ready_s is not None:
        return []
    refusal = machine.refusal if machine is not None and machine.state == "refused" else None
    return [Refused(entry.zone, entry.market, refusal or "other")]


def _reclaims(taken: Sequence[Entry], held: Sequence[Entry]) -> list[Happening]:
    """Sum reclaims up by zone, as the policy learns from how many go at once."""
    zones = sorted({entry.zone for entry in taken if entry.market == "spot"})
    news: list[Happening] = []
    for zone in zones:
        n_taken = sum(e.zone == zone and e.market == "spot" for e in taken)
        n_held = sum(e.zone == zone for e in held)
        news.append(Reclaimed(zone, n_taken, max(n_taken, n_held)))
    return news
