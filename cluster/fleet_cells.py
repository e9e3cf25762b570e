"""What a fleet's controller leaves for a front to read: nodes that are cells, and which leave."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cluster.policy.reconcile import Entry, Machine
from cluster.provisioner import FleetError

_FILE = "cells.json"


@dataclass(frozen=True)
class KnownCell:
    """A node that can be reached.

    Attributes:
        name: The node's.
        address: Where it is reached.
        zone: Where it is.
        usd_per_h: What it costs.
        leaves: Whether it is to get nothing new.
    """

    name: str
    address: str
    zone: str
    usd_per_h: float
    leaves: bool


def list_cells(entries: Iterable[Entry], machines: Iterable[Machine]) -> list[KnownCell]:
    """Return the nodes that can be reached, by name; which of them serve a front sees itself."""
    known = {entry.id: entry for entry in entries}
    up = [m for m in machines if m.state == "up" and m.address and m.id in known]
    return [
        KnownCell(m.id, m.address, m.zone, known[m.id].usd_per_h, known[m.id].leaves_s is not None)
        for m in sorted(up, key=lambda machine: machine.id)
    ]


def save_cells(folder: Path, cells: Sequence[KnownCell]) -> None:
    """Write down which there are, unless that is what stands there.

    Raises:
        FleetError: It cannot be written.
    """
    content, file = msgspec.json.encode(cells), folder / _FILE
    try:
        if file.exists() and file.read_bytes() == content:
            return
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as error:
        raise FleetError(f"{file} cannot be written: {error.strerror}.") from error


def read_cells(folder: Path) -> list[KnownCell]:
    """Return those that a controller has last seen; none where none has run."""
    try:
        content = (folder / _FILE).read_bytes()
    except FileNotFoundError:
        return []
    return msgspec.json.decode(content, type=list[KnownCell])
