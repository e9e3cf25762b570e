"""What the ways of `bench.node_loop` share: nodes that may be brought, and what is seen of them.

Each node is a file in one folder from when it is asked for until it has ended, whoever asked.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.policy.fleet import NodeId, ZoneId

FLEET = "loop"
MOST = 6
"""Nodes that may be there at once."""
ZONE = "east"
ZONE_ID = ZoneId(f"local/{ZONE}")


@dataclass(frozen=True)
class NodeCell:
    """One Ray cluster of this machine, and the nodes that may join it.

    Attributes:
        folder: Short, for Ray's files and sockets.
        head: HOST:PORT of Ray's head.
        idle_s: Seconds without work after which a node is to go.
        start_s: Seconds that a node waits before it starts, as a cloud takes its time.
    """

    folder: str
    head: str
    idle_s: float
    start_s: float

    def provisioner(self, environ: Mapping[str, str]) -> LocalProvisioner:
        """Returns what starts and ends the nodes.

        Args:
            environ: Of the nodes' processes.
        """
        return LocalProvisioner(
            FLEET,
            [LocalZone(ZONE, None, 1.0, MOST)],
            LocalNodeShape(start_s=self.start_s),
            self.head,
            self._nodes,
            Path(self.folder) / "n",
            environ,
        )

    def asked(self) -> dict[NodeId, float]:
        """When each node was asked for that is there, or is still to come."""
        found = {}
        for file in self._nodes.glob(f"{FLEET}-*.json"):
            try:
                asked = json.loads(file.read_text())
            except (OSError, ValueError):
                continue  # ended this moment
            found[NodeId(asked["id"])] = float(asked["asked_s"])
        return found

    def save(self) -> Path:
        """Writes it down for another process; returns the file."""
        file = Path(self.folder) / "cell.json"
        file.write_text(json.dumps(asdict(self)))
        return file

    @property
    def _nodes(self) -> Path:
        return Path(self.folder) / "nodes"


def load_cell(file: Path) -> NodeCell:
    """Returns what `NodeCell.save` wrote."""
    return NodeCell(**json.loads(file.read_text()))
