"""Keeps a fleet at what its settings say: observe, plan, apply, again and again.

What there is, is asked of the provisioner and of Ray each time. What is to be done is written down
before it is done, so a controller may be killed at any point: the next one finds the book, the
machines, and goes on. Names of nodes are never used twice, and a name gets one machine however
often it is asked for.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cluster.fleet_book import DOWN, Book, Ended, FleetBook, Seen
from cluster.fleet_cells import list_cells, save_cells
from cluster.fleet_policy import PolicyKeeper, make_aim, patience_of
from cluster.members import Members
from cluster.policy.budget import price_of
from cluster.policy.demand import end_idle_first
from cluster.policy.fleet import Happening, Launch, Node, NodeId, Offer, Plan, Refused
from cluster.policy.placement import SpotPlacement
from cluster.policy.reconcile import Entry, Machine, Reconciled, count_nodes, reconcile
from cluster.policy.refusals import choose_line, remedy_of
from cluster.provisioner import FleetError, FleetSetupError, Provisioner
from serve_app.config_fleet import FleetSettings

_MOST_SHOWN = 200
_logger = logging.getLogger("cluster.controller")


@dataclass(frozen=True)
class Step:
    """What one look at the fleet came to.

    Attributes:
        entries: The nodes after it.
        plan: What the policy wanted.
        happenings: What had happened since the last look.
        target: Nodes that are to serve now.
    """

    entries: tuple[Entry, ...]
    plan: Plan
    happenings: tuple[Happening, ...]
    target: int


class Controller:
    """One fleet's controller. Only one runs at a time: `FleetBook.hold`.

    Args:
        settings: What the fleet is kept at.
        provisioner: Who brings nodes up.
        members: Who knows which of them serve.
        book: Where things are written down.
        tell: Gets a line for people for each thing that is done or has happened.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        settings: FleetSettings,
        provisioner: Provisioner,
        members: Members,
        book: FleetBook,
        tell: Callable[[str], None] = _logger.info,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._provisioner = provisioner
        self._members = members
        self._files = book
        self._tell = tell
        self._clock = clock
        self._patience = patience_of(settings)
        self._book = book.load()
        self._aim = make_aim(settings, self._book.target)
        self._target = settings.target
        self._working: frozenset[NodeId] = frozenset()
        self._keeper = PolicyKeeper(settings, provisioner, book, tell)
        self._seen: tuple[object, ...] | None = None

    def run(self, is_over: Callable[[Step], bool] = lambda step: False) -> Step:
        """Step until it is over. What fails is tried again at the next step.

        Raises:
            FleetSetupError: Something is missing from the start. If it is later, nodes are there
                that somebody has to keep.
        """
        has_stepped, trouble = False, ""
        self._files.trim_seen()
        while True:
            try:
                step = self.step()
                has_stepped, trouble = True, ""
                if is_over(step):
                    return step
            except FleetError as error:
                if isinstance(error, FleetSetupError) and not has_stepped:
                    raise
                self._keeper.doubt_prices()
                if str(error) != trouble:
                    trouble = str(error)
                    self._tell(f"nothing is done now: {trouble}")
            time.sleep(self._settings.period_s)

    def step(self) -> Step:
        """Look at the fleet once, and do what is to be done.

        Raises:
            FleetError: Too little is known to do anything, or it cannot be written down.
            FleetSetupError: Something is missing on this machine.
        """
        now_s = self._clock()
        machines = self._provisioner.list_machines()
        pulses = self._members.observe(machines)
        seen = reconcile(self._book.entries, machines, pulses, now_s, self._patience)
        for line in self._observe_demand(now_s):
            self._tell(line)
        policy = self._keeper.refresh(seen.entries, self._target, now_s)
        before = self._book.entries
        self._note_lost(seen, now_s)
        self._save(seen.entries, machines)
        for line in describe(seen, before):
            self._tell(line)
        goes_down = self._follow_orders(now_s)
        plan = self._plan(policy, seen.happenings, now_s, goes_down)
        self._apply(plan, seen, machines, now_s)
        return Step(self._book.entries, plan, seen.happenings, self._target)

    def look(self) -> Reconciled:
        """Return what has become of the nodes, and do nothing."""
        machines = self._provisioner.list_machines()
        pulses = self._members.observe(machines)
        # Read after these: what a running controller drains it has written down before, and it is
        # not to look as if its cloud took it.
        self._book = self._files.load()
        return reconcile(self._book.entries, machines, pulses, self._clock(), self._patience)

    def preview(self) -> Step:
        """Return what a step would do, and do nothing."""
        now_s, seen = self._clock(), self.look()
        self._observe_demand(now_s)
        policy = self._keeper.refresh(seen.entries, self._target, now_s)
        policy.observe(seen.happenings, now_s)
        plan = self._decide(policy, count_nodes(seen.entries), now_s)
        return Step(seen.entries, plan, seen.happenings, self._target)

    def offers(self) -> Sequence[Offer]:
        """Return the prices by which it plans."""
        return list(self._keeper.offers.values())

    def _observe_demand(self, now_s: float) -> list[str]:
        """Let the target follow what Ray has no room for; return a line where it changes."""
        if self._aim is None:
            return []
        demand = self._members.demand()
        self._working = demand.working
        target = self._aim.aim(demand, now_s)
        if target == self._target:
            return []
        self._target = target
        return [f"target is {target}: {len(demand.working)} work, {len(demand.waiting)} wait"]

    def _decide(self, policy: SpotPlacement, nodes: Sequence[Node], now_s: float) -> Plan:
        plan = policy.plan(nodes, now_s)
        return replace(plan, ends=tuple(end_idle_first(plan.ends, nodes, self._working)))

    def _note_lost(self, seen: Reconciled, now_s: float) -> None:
        for entry in seen.lost:
            if entry.up_s is not None:
                offer = self._keeper.offers.get(entry.zone)
                usd_per_h = offer.on_demand_usd_per_h if offer else None
                self._files.add_ended(Ended(entry, now_s, usd_per_h))

    def _save(self, entries: Iterable[Entry], machines: Iterable[Machine] = ()) -> None:
        """Write the nodes down, and with an adopted one its price and number."""
        priced = tuple(self._price(entry) for entry in entries)
        named = [entry.id for entry in priced] + [machine.id for machine in machines]
        number = max([self._book.next_number, *(_number_of(name) + 1 for name in named)])
        book = Book(number, priced, self._target)
        if book != self._book:
            self._files.save(book)
            self._book = book

    def _price(self, entry: Entry) -> Entry:
        if entry.reason != "found" or entry.usd_per_h or entry.zone not in self._keeper.offers:
            return entry
        return replace(entry, usd_per_h=price_of(self._keeper.offers[entry.zone], entry.market))

    def _follow_orders(self, now_s: float) -> bool:
        """Let nodes leave that people want to leave; return whether all are to."""
        orders = self._files.orders()
        entries = list(self._book.entries)
        for i, entry in enumerate(entries):
            left_s = orders.get(entry.id, orders.get(DOWN))
            if entry.leaves_s is None and left_s is not None:
                self._tell(f"{entry.id}: leaves, as was asked")
                entries[i] = _leave(entry, now_s, left_s, "as was asked")
        self._save(entries)
        for name in orders:
            if name != DOWN:
                self._files.fulfil(name)
        return DOWN in orders

    def _plan(
        self,
        policy: SpotPlacement,
        happenings: tuple[Happening, ...],
        now_s: float,
        goes_down: bool,
    ) -> Plan:
        policy.observe(happenings, now_s)
        nodes = tuple(count_nodes(self._book.entries))
        if happenings or self._seen != nodes:
            self._files.add_seen(Seen(now_s, happenings, nodes))
            self._seen = nodes
        if goes_down:
            return Plan((), (), 0.0, "all nodes are to end")
        return self._decide(policy, nodes, now_s)

    def _apply(
        self, plan: Plan, seen: Reconciled, machines: Sequence[Machine], now_s: float
    ) -> None:
        asked = [self._write_down(launch, now_s, i) for i, launch in enumerate(plan.launches)]
        ends = {end.node: end.reason for end in plan.ends}
        kept = [
            _leave(e, now_s, self._settings.drain_s, ends[e.id]) if e.id in ends else e
            for e in self._book.entries
        ]
        for entry in kept:
            if entry.id in ends:
                self._tell(f"{entry.id}: ends, {ends[entry.id]}")
        self._save([*kept, *asked])
        # Before anything ends: a front is to send it nothing by then.
        save_cells(self._files.folder, list_cells(self._book.entries, machines))
        for i, entry in enumerate(asked):
            try:
                self._provisioner.launch(entry.id, entry.zone, entry.market)
            except FleetSetupError:
                self._save([*kept, *asked[:i]])  # the rest will not be asked for
                raise
            where = f"{entry.market} in {entry.zone} at ${entry.usd_per_h:.2f}/h"
            self._tell(f"{entry.id}: asked for, {where}: {entry.reason}")
        self._drain_leaving(now_s)
        for node in seen.releases:
            self._provisioner.end(node)

    def _write_down(self, launch: Launch, now_s: float, i: int) -> Entry:
        name = NodeId(f"{self._settings.name}-{self._book.next_number + i}")
        usd_per_h = price_of(self._keeper.offers[launch.zone], launch.market)
        return Entry(name, launch.zone, launch.market, now_s, usd_per_h, launch.reason)

    def _drain_leaving(self, now_s: float) -> None:
        entries = list(self._book.entries)
        for i, entry in enumerate(entries):
            if entry.leaves_s is not None and not entry.is_drained:
                left_s = max(0.0, entry.leaves_s - now_s)
                self._members.drain(entry.id, left_s, entry.leaves_why)
                entries[i] = replace(entry, is_drained=True)
        self._save(entries)


def describe(seen: Reconciled, before: Sequence[Entry]) -> list[str]:
    """Return a line for people for each change that was seen."""
    known = {entry.id: entry for entry in before}
    lines = []
    for now in [*seen.entries, *seen.lost]:
        was = known.get(now.id)
        if was is None:
            lines.append(f"{now.id}: found, {now.market} in {now.zone}")
        elif now.leaves_s is not None and was.leaves_s is None:
            lines.append(f"{now.id}: {choose_line(now.leaves_why)[:_MOST_SHOWN]}")
        elif now.is_ready and not was.is_ready:
            lines.append(
                f"{now.id}: serves, {(now.ready_s or 0) - now.asked_s:.0f} s after the launch"
            )
        elif now.up_s is not None and was.up_s is None:
            lines.append(f"{now.id}: is up, {now.up_s - now.asked_s:.0f} s after the launch")
    lines += [f"{entry.id}: gone" for entry in seen.lost if entry.id in known and entry.up_s]
    for news in seen.happenings:
        if isinstance(news, Refused):
            remedy = remedy_of(news.reason, news.zone.split("/")[0])
            node = "a spot node" if news.market == "spot" else "an on-demand node"
            lines.append(f"{news.zone}: refused {node} ({news.reason}); {remedy}")
    return lines


def _leave(entry: Entry, now_s: float, left_s: float, why: str) -> Entry:
    """Return an entry that is to leave; what does not serve leaves at once."""
    left_s = left_s if entry.is_ready else 0.0
    return replace(entry, leaves_s=now_s + left_s, leaves_why=why, is_drained=not entry.is_ready)


def _number_of(name: str) -> int:
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
