"""Traces of spot availability, as files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.policy.fleet import ZoneId


@dataclass(frozen=True)
class Trace:
    """Room for spot nodes by zone, one number each `gap_s`."""

    name: str
    gap_s: float
    rooms: Mapping[ZoneId, Sequence[int]]

    @property
    def duration_s(self) -> float:
        """As long as every zone is known."""
        return min(map(len, self.rooms.values())) * self.gap_s

    def room(self, zone: ZoneId, at_s: float) -> int:
        """Nodes that the zone gives then."""
        return self.rooms[zone][int(at_s // self.gap_s)]


def load_trace(folder: Path) -> Trace:
    """Reads a folder with a file for each zone."""
    rooms: dict[ZoneId, list[int]] = {}
    gap_s = 0.0
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        gap_s = float(content["metadata"]["gap_seconds"])
        rooms[ZoneId(file.stem.split("_")[0])] = content["data"]
    if not rooms:
        raise SystemExit(f"error: {folder} holds no traces (*.json)")
    return Trace(folder.name, gap_s, rooms)
