"""A cloud in memory and the nodes that serve in it, with a clock; each call may kill its caller."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.policy.demand import Demand
from cluster.policy.fleet import Market, NodeId, Offer, Refusal, ZoneId
from cluster.policy.reconcile import Machine, Pulse

START_S = 40.0
OFFERS = (
    Offer(ZoneId("x/east/a"), "x", "x/east", 1.0, 3.0),
    Offer(ZoneId("x/east/b"), "x", "x/east", 1.1, 3.1),
    Offer(ZoneId("y/west/a"), "y", "y/west", 1.2, 3.2),
)


class KilledError(Exception):
    """The controller's process ends here."""


@dataclass
class FakeCloud:
    """Implements Provisioner and Members.

    Attributes:
        now_s: Time.
        machines: What there is, by name.
        draining: When a node stops serving.
        drained: Nodes that have stopped before anybody looked.
        room: Nodes that a zone has at most; no entry means many.
        refusal: Why a launch in a zone fails that has no room.
        ever: Names of all machines that have ever been started, in order.
        wanted: What Ray says of its work.
        before_call: Called before and after each call's effect; raises to kill the caller.
        said: Remarks on the offers.
    """

    now_s: float = 1_000_000.0
    machines: dict[NodeId, Machine] = field(default_factory=dict)
    draining: dict[NodeId, float] = field(default_factory=dict)
    drained: set[NodeId] = field(default_factory=set)
    room: dict[ZoneId, int] = field(default_factory=dict)
    refusal: Refusal = "stock"
    ever: list[NodeId] = field(default_factory=list)
    wanted: Demand = field(default_factory=Demand)
    before_call: Callable[[], None] = lambda: None
    said: tuple[str, ...] = ()

    # --- Provisioner ------------------------------------------------------------------------

    def list_offers(self) -> Sequence[Offer]:
        return OFFERS

    def remarks(self) -> Sequence[str]:
        return self.said

    def describe_kind(self, zone: ZoneId, market: Market) -> str:
        return "one machine"

    def list_machines(self) -> Sequence[Machine]:
        self.before_call()
        return [self._aged(machine) for machine in self.machines.values()]

    def launch(self, node: NodeId, zone: ZoneId, market: Market) -> None:
        self.before_call()
        if node not in self.machines:
            n_here = sum(m.zone == zone and m.state != "refused" for m in self.machines.values())
            is_full = n_here >= self.room.get(zone, 1_000)
            machine = Machine(node, zone, market, "starting", self.now_s)
            if is_full:
                machine = replace(machine, state="refused", refusal=self.refusal)
            else:
                self.ever.append(node)
            self.machines[node] = machine
        self.before_call()

    def end(self, node: NodeId) -> None:
        self.before_call()
        self.machines.pop(node, None)
        self.draining.pop(node, None)
        self.before_call()

    def close(self) -> None:
        """Nothing is held."""

    # --- Members ----------------------------------------------------------------------------

    def observe(self, machines: Sequence[Machine]) -> Mapping[NodeId, Pulse]:
        up = [m for m in self.machines.values() if self._aged(m).state == "up"]
        alive = [m.id for m in up if self.draining.get(m.id, self.now_s) >= self.now_s]
        pulses = {node: Pulse(self.draining.get(node)) for node in alive}
        over = {node: Pulse(self.now_s, is_over=True) for node in self.drained if node in alive}
        return pulses | over

    def demand(self) -> Demand:
        return self.wanted

    def drain(self, node: NodeId, left_s: float, why: str) -> None:
        self.before_call()
        if node in self.machines:
            self.draining[node] = self.now_s + left_s
        self.before_call()

    # --- what tests do ----------------------------------------------------------------------

    def take(self, node: NodeId, notice_s: float = 0.0) -> None:
        """Take a node back, now or with a notice."""
        if notice_s:
            self.draining[node] = self.now_s + notice_s
        else:
            self.machines.pop(node, None)

    def take_due(self) -> None:
        """Take those whose notice is over."""
        for node, at_s in list(self.draining.items()):
            if at_s < self.now_s:
                self.machines.pop(node, None)

    def paid(self) -> set[NodeId]:
        """Names of the machines that cost."""
        return {m.id for m in self.machines.values() if m.state != "refused"}

    def serving(self) -> set[NodeId]:
        """Names of the nodes that serve and stay."""
        return {node for node, pulse in self.observe([]).items() if pulse.leaves_s is None}

    def _aged(self, machine: Machine) -> Machine:
        if machine.state == "starting" and self.now_s >= machine.asked_s + START_S:
            return replace(machine, state="up")
        return machine
