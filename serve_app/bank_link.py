"""How a cell asks the bank of its fleet, and other cells: HTTP with a shared key."""

import logging
import uuid
from typing import TypeVar

import httpx
import msgspec

from serve_app.config_cell import CellMembership, read_cell_name, read_cells_key

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
_T = TypeVar("_T", bound=msgspec.Struct)


class BankLink:
    """One process's connection to the bank, or to another cell.

    Args:
        settings: The cell's.
        peer: The other cell's address; None is the bank's.
        client: To ask with, and not to be closed here; None makes one.

    Raises:
        ConfigError: The key or the name is not in the environment.
    """

    def __init__(
        self,
        settings: CellMembership,
        peer: str | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self.cell = read_cell_name(settings)
        self.period_s = settings.period_s
        self.run = uuid.uuid4().hex
        """Of this process."""
        self._url = (settings.bank if peer is None else peer).rstrip("/")
        self._name = "bank of cells" if peer is None else "cell"
        self._headers = {"authorization": f"Bearer {read_cells_key(settings.key)}"}
        self._client, self._is_client_own = client, client is None
        self._is_away = False

    async def ask(self, path: str, question: msgspec.Struct, kind: type[_T]) -> _T | None:
        """Return the answer; None where there is none."""
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=TIMEOUT_S)
        try:
            answer = await self._client.post(
                self._url + path, content=msgspec.json.encode(question), headers=self._headers
            )
            answer.raise_for_status()
            decoded = msgspec.json.decode(answer.content, type=kind)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            self._note(is_away=True, why=str(error) or type(error).__name__)
            return None
        self._note(is_away=False)
        return decoded

    async def close(self) -> None:
        """Ask no more."""
        if self._client is not None and self._is_client_own:
            await self._client.aclose()

    def _note(self, *, is_away: bool, why: str = "") -> None:
        if is_away and not self._is_away:
            logger.warning("The %s at %s does not answer: %s", self._name, self._url, why)
        if self._is_away and not is_away:
            logger.info("The %s at %s answers again.", self._name, self._url)
        self._is_away = is_away
