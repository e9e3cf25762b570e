"""What a fleet's controller writes down, and the lock that keeps it alone.

    book.json       the nodes that are asked for; written before anything is done about them
    history.jsonl   what the placement policy has seen; read again by the next controller
    ended.jsonl     nodes that are gone, for the bill
    cells.json      nodes that can be reached, for a front (`fleet_cells`)
    orders/         what people have asked of the running controller
    lock            held while a controller runs

A writer that dies leaves the old book or the new one, and at most half a line at a file's end.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from cluster.policy.fleet import Happening, Launched, Node, NodeId, Reclaimed, Refused
from cluster.policy.reconcile import Entry
from cluster.provisioner import FleetError

_KINDS: dict[str, type[Launched] | type[Refused] | type[Reclaimed]] = {
    "launched": Launched,
    "refused": Refused,
    "reclaimed": Reclaimed,
}
_MOST_HISTORY = 2_000
_AGAIN_S = 0.1
DOWN = "down"
METRICS_FILES = "metrics-*.json"
"""Beside the folders of fleets, by name: where controllers show metrics, as Prometheus reads such
files. It takes a `*` in the last part of a path only."""


@dataclass(frozen=True)
class Book:
    """The nodes of one fleet.

    Attributes:
        next_number: Of the next node; none is used twice.
        entries: Nodes from before they are asked for until they are gone.
        target: Nodes that were to serve.
    """

    next_number: int = 1
    entries: tuple[Entry, ...] = ()
    target: int = 0


@dataclass(frozen=True)
class Ended:
    """A node that is gone, and what it cost.

    Attributes:
        entry: As it was last.
        ended_s: When it was seen to be gone.
        on_demand_usd_per_h: What it would have cost on demand; None where nobody knows.
    """

    entry: Entry
    ended_s: float
    on_demand_usd_per_h: float | None = None


@dataclass(frozen=True)
class Seen:
    """What the placement policy was told once.

    Attributes:
        at_s: When.
        happenings: What had happened.
        nodes: The nodes then.
    """

    at_s: float
    happenings: tuple[Happening, ...]
    nodes: tuple[Node, ...]


class FleetBook:
    """One fleet's files.

    Args:
        folder: The fleet's own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def hold(self, tries: int = 1) -> Iterator[bool]:
        """Hold the fleet while the context lasts; false where another controller does.

        Args:
            tries: Several outlast those who only look whether anybody holds it.
        """
        with hold_folder(self.folder, tries) as is_mine:
            yield is_mine

    def holder(self) -> str:
        """Return the process id of who holds the fleet, or held it last."""
        try:
            return (self.folder / "lock").read_text() or "?"
        except OSError:
            return "?"

    def load(self) -> Book:
        """Return what is written down; an empty book where nothing is.

        Raises:
            FleetError: It cannot be read.
        """
        file = self.folder / "book.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=Book)
        except FileNotFoundError:
            return Book()
        except (OSError, msgspec.DecodeError) as error:
            raise FleetError(
                f"{file} cannot be read: {error}. Nodes are found again without it: move it away."
            ) from error

    def save(self, book: Book) -> None:
        """Write the book; it is on disk when this returns.

        Raises:
            FleetError: It cannot be written; then nothing may be done either.
        """
        partial = self.folder / "book.partial"
        with _writing(partial):
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                stream.write(msgspec.json.encode(book))
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(self.folder / "book.json")

    def add_seen(self, seen: Seen) -> None:
        """Note what the policy was told."""
        happenings = [_dump(each) for each in seen.happenings]
        nodes = [asdict(node) for node in seen.nodes]
        line = {"at_s": seen.at_s, "happenings": happenings, "nodes": nodes}
        self._append("history.jsonl", line)

    def read_seen(self, most: int = _MOST_HISTORY) -> list[Seen]:
        """Return what the policy was told lately, the oldest first."""
        lines = self._read("history.jsonl")[-most:]
        return [
            Seen(
                line["at_s"],
                tuple(_load(each) for each in line["happenings"]),
                tuple(Node(**node) for node in line["nodes"]),
            )
            for line in lines
        ]

    def trim_seen(self, most: int = _MOST_HISTORY) -> None:
        """Forget what is not read any more. For who holds the fleet: nobody else may write now."""
        lines = self._read("history.jsonl")
        if len(lines) > 2 * most:
            partial = self.folder / "history.partial"
            last = lines[-most:]
            partial.write_text("".join(json.dumps(line) + "\n" for line in last))
            partial.replace(self.folder / "history.jsonl")

    def add_ended(self, ended: Ended) -> None:
        """Note a node that is gone. Noting it twice counts once."""
        self._append("ended.jsonl", asdict(ended))

    def read_ended(self) -> list[Ended]:
        """Return the nodes that are gone."""
        by_id: dict[NodeId, Ended] = {}
        for line in self._read("ended.jsonl"):
            ended = msgspec.convert(line, Ended)
            by_id[ended.entry.id] = ended
        return list(by_id.values())

    def order(self, name: str, left_s: float) -> None:
        """Ask the controller to end a node, or all with `DOWN`, within some seconds."""
        folder = self.folder / "orders"
        folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"order-{name}.partial"
        partial.write_text(json.dumps({"left_s": left_s}))
        partial.replace(folder / f"{name}.json")

    def orders(self) -> dict[str, float]:
        """Return what is asked: seconds by the node's name."""
        found: dict[str, float] = {}
        for file in sorted((self.folder / "orders").glob("*.json")):
            with suppress(FileNotFoundError):  # followed this moment
                found[file.stem] = float(json.loads(file.read_text())["left_s"])
        return found

    def fulfil(self, name: str) -> None:
        """Forget an order."""
        (self.folder / "orders" / f"{name}.json").unlink(missing_ok=True)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        file = self.folder / name
        with _writing(file):
            self._append_to(file, line)

    def _append_to(self, file: Path, line: dict[str, Any]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as stream:
            # A killed writer may have left half a line; what follows it must not be lost with it.
            if stream.tell() and not _ends_a_line(file):
                stream.write(b"\n")
            stream.write(json.dumps(line).encode() + b"\n")

    def _read(self, name: str) -> list[dict[str, Any]]:
        try:
            lines = (self.folder / name).read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Say which file it is that cannot be written."""
    try:
        yield
    except OSError as error:
        raise FleetError(f"{file} cannot be written: {error.strerror}.") from error


@contextmanager
def hold_folder(folder: Path, tries: int = 1) -> Iterator[bool]:
    """Hold a folder while the context lasts, and say so in its `lock`; false where another does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as held:
        if not _lock(held, tries):
            yield False
            return
        held.seek(0)
        held.truncate()
        held.write(str(os.getpid()))
        held.flush()
        yield True


def _lock(file: IO[str], tries: int) -> bool:
    for i in range(tries):
        if i:
            time.sleep(_AGAIN_S)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _dump(happening: Happening) -> dict[str, Any]:
    return {"kind": type(happening).__name__.lower(), **asdict(happening)}


def _load(told: dict[str, Any]) -> Happening:
    fields = {name: value for name, value in told.items() if name != "kind"}
    return _KINDS[told["kind"]](**fields)


def zones_of(seen: Sequence[Seen]) -> set[str]:
    """Return every zone that the policy was told of."""
    told = {happening.zone for each in seen for happening in each.happenings}
    return {str(zone) for zone in told | {node.zone for each in seen for node in each.nodes}}
