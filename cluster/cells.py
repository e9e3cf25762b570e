"""Which cells a front has, and how each stands: what it says at its `/ready`."""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from cluster.fleet_cells import read_cells
from cluster.policy.cells import Cell, CellLoad
from serve_app.config import is_loopback
from serve_app.config_front import FrontSettings

logger = logging.getLogger(__name__)

_AT_ONCE = 64
_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Look:
    """What one look at a cell came to.

    Attributes:
        is_ready: Whether every model of it takes requests.
        leaves: Whether it says that it ends, or that a model's engines are all leaving.
        places: Requests that its engines run at a time.
        busy: Requests that run or wait there.
        only_gateways: Whether it has no engines and sends all to other cells.
    """

    is_ready: bool = False
    leaves: bool = False
    places: int = 0
    busy: int = 0
    only_gateways: bool = False

    def load(self, ours: int) -> CellLoad:
        """Return its load, of which a front has so much."""
        return CellLoad(max(self.places, 1), self.busy, ours)


@dataclass(frozen=True)
class FleetOfCells:
    """A fleet whose nodes are cells.

    Attributes:
        folder: Of its files, on this machine.
        port: Of the cells' gateways.
    """

    folder: Path
    port: int


def list_cells(settings: FrontSettings, fleet: FleetOfCells | None) -> list[Cell]:
    """Return the cells of the settings and those that a fleet's controller has written down."""
    given = [Cell(c.name, c.url.rstrip("/"), c.zone, c.usd_per_h) for c in settings.cells]
    if fleet is None:
        return given
    names = {cell.name for cell in given}
    kept = [cell for cell in read_cells(fleet.folder) if cell.name not in names]
    urls = [f"http://{cell.address}:{fleet.port}" for cell in kept]
    found = zip(kept, urls, strict=True)
    return given + [Cell(c.name, url, c.zone, c.usd_per_h, c.leaves) for c, url in found]


class CellWatch:
    """Looks at cells.

    Args:
        is_open: Whether others than this machine reach the front: then cells have to ask for keys.
        client: To ask with.
    """

    def __init__(self, *, is_open: bool, client: httpx.Client | None = None) -> None:
        self._is_open = is_open
        self._client = client or httpx.Client(timeout=_TIMEOUT_S)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "cells")
        self._asks_for_keys: dict[str, bool] = {}

    def look(self, cells: Iterable[Cell]) -> dict[str, Look | None]:
        """Return how each cell stands, by name; None for those that do not answer."""
        asked = list(cells)
        looks = self._pool.map(self._look_at, asked)
        return dict(zip((cell.name for cell in asked), looks, strict=True))

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _look_at(self, cell: Cell) -> Look | None:
        try:
            if self._is_open and not self._has_keys(cell):
                return Look()
            answer = self._client.get(f"{cell.url}/ready")
            return read_look(answer.status_code == 200, answer.json())
        except (httpx.HTTPError, ValueError):
            return None

    def _has_keys(self, cell: Cell) -> bool:
        if cell.url not in self._asks_for_keys:
            has_keys = self._client.get(f"{cell.url}/v1/models").status_code in (401, 403)
            if not has_keys:
                logger.warning("%s asks for no keys and gets nothing from others.", cell.name)
                return False
            self._asks_for_keys[cell.url] = has_keys
        return self._asks_for_keys[cell.url]


def read_look(is_ready: bool, answer: object) -> Look:
    """Read a cell's `/ready`.

    Raises:
        ValueError: It is not what a cell says.
    """
    try:
        return _read(is_ready, cast(Mapping[str, Any], answer))
    except (AttributeError, TypeError) as error:
        raise ValueError("it is no cell that answers") from error


def _read(is_ready: bool, answer: Mapping[str, Any]) -> Look:
    models = answer.get("models", {}).values()
    engines = [engine for model in models for engine in model.get("engines", [])]
    ready = [engine for engine in engines if engine.get("state") == "ready"]
    busy = sum(engine.get("running", 0) + engine.get("waiting", 0) for engine in engines)
    return Look(
        is_ready,
        answer.get("leaves_s") is not None or any(m.get("state") == "draining" for m in models),
        sum(engine.get("places", 0) for engine in ready),
        busy + sum(model.get("waiting", 0) for model in models),
        bool(answer.get("only_gateways")),
    )


def is_reachable_by_others(settings: FrontSettings) -> bool:
    """Return whether a front listens where other machines can connect."""
    return not is_loopback(settings.host)


Tell = Callable[[str], None]
"""Gets a line for people."""
