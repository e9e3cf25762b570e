"""Other cells, as a gateway whose requests may go on there finds them."""

import logging

import httpx

from serve_app.bank_link import TIMEOUT_S, BankLink
from serve_app.cell_messages import (
    CELLS_PATH,
    ROUTER_PATH,
    AskCells,
    AskRouter,
    PeerCell,
    PeerCells,
    RouterAt,
)
from serve_app.config_cell import CellMembership
from serve_app.errors import InternalError
from serve_app.messages import Endpoint
from serve_app.names import ModelName

logger = logging.getLogger(__name__)


class Peers:
    """Asks the bank which cells there are.

    Args:
        settings: Of this cell.
        store: What this cell's store is known by; empty is one of its own.

    Raises:
        ConfigError: The key or the name is not in the environment.
    """

    def __init__(self, settings: CellMembership, store: str) -> None:
        self.settings = settings
        self.store = store
        # One for all: to make one takes many milliseconds of everyone's time.
        self.client = httpx.AsyncClient(timeout=TIMEOUT_S)
        self._link = BankLink(settings, client=self.client)
        self._cells: list[PeerCell] = []
        self.own_urls: set[str] = set()
        """Addresses of this cell itself."""

    @property
    def cell(self) -> str:
        """This cell's name."""
        return self._link.cell

    async def list_cells(self) -> list[PeerCell]:
        """Return the other cells that take requests, those with most places first.

        While the bank is away these are those that it named last. This one may be among them, as
        long as nobody has noticed.
        """
        answer = await self._link.ask(CELLS_PATH, AskCells(self.cell), PeerCells)
        if answer is not None:
            self._cells = sorted(answer.cells, key=lambda cell: -cell.places)
        return [cell for cell in self._cells if cell.url not in self.own_urls]

    @property
    def urls(self) -> set[str]:
        """Addresses of the cells that the bank named last: none of those leaves."""
        return {cell.url for cell in self._cells}

    async def close(self) -> None:
        """Ask no more."""
        await self.client.aclose()


class PeerRouter:
    """Finds the router of a model in another cell.

    Args:
        peers: Of this cell.
        url: Of the other cell's gateways.
        model: The model.

    Attributes:
        at: What the other cell said last; None until it has said something.
    """

    def __init__(self, peers: Peers, url: str, model: ModelName) -> None:
        self.at: RouterAt | None = None
        self._own = peers.cell
        self._link = BankLink(peers.settings, url, peers.client)
        self._url = url
        self._model = model

    @property
    def is_own(self) -> bool:
        """Whether it is this cell that answers there."""
        return self.at is not None and self.at.cell == self._own

    async def find(self) -> Endpoint:
        """Return where it is.

        Raises:
            InternalError: The cell does not say.
        """
        answer = await self._link.ask(ROUTER_PATH, AskRouter(self._model), RouterAt)
        if answer is None:
            raise InternalError(f"the cell at {self._url} does not say where")
        self.at = answer
        if self.is_own:
            raise InternalError(f"{self._url} is this cell itself")
        return Endpoint(answer.address, answer.key)
