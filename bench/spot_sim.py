"""Replays spot availability traces against a placement policy.

A trace says for each zone how many spot nodes it would give at a time. What a policy sees is what a
controller would: its own nodes, which launches failed, which nodes were taken. Every launch takes
`start_up_s` until its node serves; a node that its zone has no room for goes at once, without
notice, the newest first. On-demand nodes always come and stay.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from bench.spot_trace import Trace
from cluster.policy.fleet import (
    Happening,
    Launched,
    Market,
    Node,
    NodeId,
    Offer,
    Plan,
    Reclaimed,
    Refused,
    ZoneId,
)

_MOST_ROUNDS = 12
"""Of launches in one tick."""


Purpose = Literal["serving", "spare", "starting"]
"""What a node is paid for."""
Use = tuple[Market, Purpose]
_MARKETS: tuple[Market, ...] = ("spot", "on-demand")


class Placement(Protocol):
    """What the simulator asks; `SpotPlacement` and its rivals answer."""

    def observe(self, happenings: Sequence[Happening], now_s: float) -> None:
        """Hears what has happened since the last call."""

    def plan(self, nodes: Sequence[Node], now_s: float) -> Plan:
        """Says what to do."""


@dataclass(frozen=True)
class Setting:
    """What a replay is run with. Prices are in spot nodes' hours."""

    target: int = 3
    start_up_s: float = 120.0
    tick_s: float = 30.0
    window_s: float = 86_400.0
    notices_s: Mapping[str, float] = field(default_factory=dict)
    """Notice of a reclaim that each cloud gives; none where it is not named."""
    spot_usd_per_h: float = 1.0
    on_demand_usd_per_h: float = 3.0
    paid_s: float = 0.0
    """What a node that is ended is paid for at least."""
    history_s: float = 0.0
    """For how long before the window the policy has kept the fleet; less where the trace begins."""

    def price(self, market: Market) -> float:
        """US dollars an hour of one node."""
        return self.spot_usd_per_h if market == "spot" else self.on_demand_usd_per_h


@dataclass(frozen=True)
class Tally:
    """What was held in some of the ticks, summed over them."""

    ticks: int = 0
    usd_per_h: float = 0.0
    spot: int = 0
    on_demand: int = 0
    short: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.ticks + other.ticks,
            self.usd_per_h + other.usd_per_h,
            self.spot + other.spot,
            self.on_demand + other.on_demand,
            self.short + other.short,
        )


@dataclass(frozen=True)
class Outcome:
    """One window under one policy.

    Attributes:
        availability: Share of time in which the target's nodes served, from the end of the first
            start-up on: before it no policy can have any.
        availability_all: The same from the beginning on.
        cost: Divided by that of the target's nodes on demand.
        shortage: Node-seconds missing, divided by those wanted: requests that are late or lost
            when load is just what the target can serve.
        reclaims: Spot nodes taken.
        launches: That succeeded.
        on_demand: Share of the cost.
        spent: The cost by market and use: nodes that serve the target, spare ones beyond it, and
            those that start.
        by_open: What was held by the number of zones that had room.
    """

    availability: float
    availability_all: float
    cost: float
    shortage: float
    reclaims: int
    launches: int
    on_demand: float
    spent: Mapping[Use, float] = field(default_factory=dict)
    by_open: Mapping[int, Tally] = field(default_factory=dict)


def list_offers(trace: Trace, setting: Setting) -> list[Offer]:
    """Every zone's offer; all ask the same, as the traces say nothing of prices."""
    return [
        Offer(
            zone,
            "gcp" if zone[-2] == "-" else "aws",
            zone.rsplit("-", 1)[0] if zone[-2] == "-" else zone[:-1],
            setting.spot_usd_per_h,
            setting.on_demand_usd_per_h,
        )
        for zone in trace.rooms
    ]


class Replay:
    """One window of a trace under one policy."""

    def __init__(
        self, trace: Trace, policy: Placement, setting: Setting, offset_s: float, seed: int = 0
    ) -> None:
        self._trace, self._policy, self._setting = trace, policy, setting
        self._n_before = int(min(setting.history_s, offset_s) // setting.tick_s)
        self._offset_s = offset_s - self._n_before * setting.tick_s
        self._nodes: list[Node] = []
        self._leaving: list[tuple[Node, float]] = []
        self._clouds = {offer.zone: offer.cloud for offer in list_offers(trace, setting)}
        self._made = self._n_made_before = 0
        self._happenings: list[Happening] = []
        self._spent: defaultdict[Use, float] = defaultdict(float)
        self._by_open: defaultdict[int, Tally] = defaultdict(Tally)
        self._reclaims = self._missing = 0
        self._served = self._served_late = 0

    def run(self) -> Outcome:
        """Runs the window to its end."""
        setting = self._setting
        n_ticks = round(setting.window_s / setting.tick_s)
        first = max(0, round(setting.start_up_s / setting.tick_s) - self._n_before)
        for tick in range(self._n_before):
            self._live(tick * setting.tick_s)
        self._forget()
        for tick in range(n_ticks):
            now_s = (self._n_before + tick) * setting.tick_s
            self._live(now_s)
            self._count(now_s, tick >= first)
        whole = setting.target * n_ticks * setting.on_demand_usd_per_h
        total = sum(self._spent.values())
        on_demand = sum(usd for (market, _), usd in self._spent.items() if market == "on-demand")
        return Outcome(
            self._served_late / (n_ticks - first),
            self._served / n_ticks,
            total / whole,
            self._missing / (setting.target * (n_ticks - first)),
            self._reclaims,
            self._made - self._n_made_before,
            on_demand / (total or 1.0),
            {use: usd / whole for use, usd in self._spent.items()},
            dict(self._by_open),
        )

    def _live(self, now_s: float) -> None:
        self._take(now_s)
        self._leaving = [(node, at_s) for node, at_s in self._leaving if at_s > now_s]
        self._mark_ready(now_s)
        self._ask(now_s)

    def _forget(self) -> None:
        """Begin the bill: what was before the window is paid."""
        self._spent.clear()
        self._reclaims = 0
        self._n_made_before = self._made

    def _take(self, now_s: float) -> None:
        held = Counter(node.zone for node in self._nodes if node.market == "spot")
        for zone, n_held in held.items():
            n_taken = n_held - self._room(zone, now_s)
            if n_taken <= 0:
                continue
            mine = [n for n in self._nodes if n.zone == zone and n.market == "spot"]
            newest = sorted(mine, key=lambda node: -node.started_s)[:n_taken]
            self._nodes = [node for node in self._nodes if node not in newest]
            at_s = now_s + self._notice_s(zone)
            self._leaving += [(node, at_s) for node in newest]
            self._reclaims += n_taken
            self._happenings.append(Reclaimed(zone, n_taken, n_held))

    def _notice_s(self, zone: ZoneId) -> float:
        return self._setting.notices_s.get(self._clouds[zone], 0.0)

    def _room(self, zone: ZoneId, now_s: float) -> int:
        """A zone that has given notice gives no new nodes either."""
        at_s = self._offset_s + now_s
        end_s = self._trace.duration_s - 1.0
        later_s = min(at_s + self._notice_s(zone), end_s)
        return min(self._trace.room(zone, at_s), self._trace.room(zone, later_s))

    def _mark_ready(self, now_s: float) -> None:
        for i, node in enumerate(self._nodes):
            if not node.is_ready and now_s - node.started_s >= self._setting.start_up_s:
                self._nodes[i] = Node(node.id, node.zone, node.market, node.started_s, True)

    def _ask(self, now_s: float) -> None:
        """Asks until a plan has nothing more to try: a cloud refuses within seconds."""
        for _ in range(_MOST_ROUNDS):
            self._policy.observe(tuple(self._happenings), now_s)
            self._happenings.clear()
            plan = self._policy.plan(tuple(self._nodes), now_s)
            self._do(plan, now_s)
            if not plan.launches:
                break

    def _do(self, plan: Plan, now_s: float) -> None:
        ended = {end.node for end in plan.ends}
        self._charge_rest([node for node in self._nodes if node.id in ended], now_s)
        self._nodes = [node for node in self._nodes if node.id not in ended]
        for launch in plan.launches:
            held = sum(n.zone == launch.zone and n.market == "spot" for n in self._nodes)
            room = self._room(launch.zone, now_s)
            if launch.market == "spot" and held >= room:
                self._happenings.append(Refused(launch.zone, "spot"))
                continue
            self._made += 1
            name = NodeId(f"n{self._made}")
            self._nodes.append(Node(name, launch.zone, launch.market, now_s, False))
            self._happenings.append(Launched(launch.zone, launch.market))

    def _count(self, now_s: float, is_late: bool) -> None:
        setting = self._setting
        paid = self._nodes + [node for node, _ in self._leaving]
        n_ready = sum(node.is_ready for node in paid)
        served = n_ready >= setting.target
        self._served += served
        if is_late:
            self._served_late += served
            self._missing += max(0, setting.target - n_ready)
        n_open = sum(self._trace.room(z, self._offset_s + now_s) > 0 for z in self._trace.rooms)
        on_demand = sum(node.market == "on-demand" for node in paid)
        spot, before = len(paid) - on_demand, sum(self._spent.values())
        self._charge(paid)
        usd = sum(self._spent.values()) - before
        self._by_open[n_open] += Tally(1, usd, spot, on_demand, is_late and not served)

    def _charge_rest(self, ended: Sequence[Node], now_s: float) -> None:
        setting = self._setting
        for node in ended:
            rest_s = max(0.0, setting.paid_s - (now_s - node.started_s))
            usd = setting.price(node.market) * rest_s / setting.tick_s
            self._spent[node.market, "starting"] += usd

    def _charge(self, paid: Sequence[Node]) -> None:
        """Spot nodes serve first, so that on-demand nodes beside enough of them are spare."""
        open_places = self._setting.target
        for market in _MARKETS:
            price = self._setting.price(market)
            ready = sum(node.is_ready for node in paid if node.market == market)
            starting = sum(node.market == market for node in paid) - ready
            serving = min(ready, open_places)
            open_places -= serving
            self._spent[market, "serving"] += price * serving
            self._spent[market, "spare"] += price * (ready - serving)
            self._spent[market, "starting"] += price * starting


def choose_offsets(
    trace: Trace, setting: Setting, n: int, part: tuple[float, float]
) -> list[float]:
    """Returns where windows begin, drawn from a part of the trace."""
    begin, end = (trace.duration_s * share for share in part)
    last = end - setting.window_s
    if last < begin:
        raise SystemExit(f"error: {trace.name} is too short for windows of {setting.window_s} s")
    rng = random.Random(f"{trace.name} {part}")
    return [begin + rng.random() * (last - begin) for _ in range(n)]
