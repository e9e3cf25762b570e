"""Decides which zones are asked for a spot node only to see whether they give one.

Inputs: the zones that may be asked, when each was last seen open or asked, and the nodes.

The rule:
  - While on-demand nodes are paid for, zones without a node of the fleet are asked again and again.
  - What comes is ended when it has been paid for anyhow: clouds charge for a minute at least.

Invariants:
  1. probes_are_few: at most `most` at a time, one a zone, and no zone more often than `every_s`.
  2. probes_are_brief: none outlasts `stay_s` by more than a look, once it is confirmed.
  3. only_probes_are_ended: no other node is.

Source: our own. How long a zone has been open says most about how long it stays so; a fleet that
stayed there to learn it would pay for an hour of each node where this pays for minutes.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cluster.policy.fleet import End, Launch, Node, ZoneId


@dataclass(frozen=True)
class ProbeSettings:
    """How zones are watched.

    Attributes:
        every_s: From one look at a zone to the next; 0 to look at none.
        stay_s: What a node is paid for at least.
        most: Nodes at a time.
    """

    every_s: float = 1200.0
    stay_s: float = 60.0
    most: int = 2


class Probes:
    """Nodes that nobody counts on."""

    def __init__(self, settings: ProbeSettings) -> None:
        self._settings = settings
        self._asked_s: dict[ZoneId, float] = {}

    def is_one(self, node: Node) -> bool:
        """Say whether a node is there only to see whether its zone gives it."""
        asked_s = self._asked_s.get(node.zone)
        return node.market == "spot" and not node.is_ready and node.started_s == asked_s

    def choose(
        self,
        zones: Iterable[ZoneId],
        seen_s: Mapping[ZoneId, float],
        probed: Collection[ZoneId],
        now_s: float,
    ) -> list[Launch]:
        """Return launches.

        Args:
            zones: Those that may be asked and have no node of the fleet.
            seen_s: When each was last known to have room.
            probed: Those that have a probe.
            now_s: Time.
        """
        due = []
        for zone in zones:
            last_s = max(seen_s[zone], self._asked_s.get(zone, seen_s[zone]))
            if zone not in probed and 0 < self._settings.every_s <= now_s - last_s:
                due.append((last_s, zone))
        chosen = [zone for _, zone in sorted(due)[: max(0, self._settings.most - len(probed))]]
        self._asked_s |= dict.fromkeys(chosen, now_s)
        return [Launch(zone, "spot", "to see whether it has room") for zone in chosen]

    def end(self, nodes: Iterable[Node], now_s: float) -> list[End]:
        """Return the ends of probes that have been paid for anyhow."""
        return [
            End(node.id, "has seen that its zone has room")
            for node in nodes
            if self.is_one(node)
            and node.is_confirmed
            and now_s - node.started_s >= self._settings.stay_s
        ]
