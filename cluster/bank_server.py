"""The bank of a fleet's cells: keeps count of limits and turns for all of them, over HTTP.

It remembers nothing that its cells do not know; started anew it hears it from them again. It also
tells cells of one another, as its front sees them.
"""

import hmac
import logging
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec
import uvicorn

from serve_app.cell_messages import (
    CELLS_PATH,
    LIMITS_PATH,
    SERVICE_PATH,
    AskCells,
    PeerCell,
    PeerCells,
    TellLimits,
    TellService,
)
from serve_app.errors import CommandError
from serve_app.policy.limit_bank import LimitBank
from serve_app.policy.service_bank import ServiceBank

logger = logging.getLogger(__name__)

_MOST_BYTES = 16 << 20
_START_S = 10.0
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Bank:
    """An ASGI application that answers cells.

    Args:
        key: What cells show.
        now: The monotonic clock.
    """

    def __init__(self, key: str, now: Callable[[], float] = time.monotonic) -> None:
        self._key = f"Bearer {key}".encode()
        self._now = now
        self._limits = LimitBank(now())
        self._service = ServiceBank(uuid.uuid4().hex)
        self.cells: Sequence[PeerCell] | None = None
        """Those that answer, replaced as a whole by whoever knows; None until somebody does."""

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        status, content = 401, b""
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._key):
            status, content = self._answer(scope["path"], await _read(receive))
        head = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": content})

    def _answer(self, path: str, body: bytes | None) -> tuple[int, bytes]:
        if body is None:
            return 413, b""
        answer: msgspec.Struct | None
        try:
            if path == LIMITS_PATH:
                answer = self._limits.tell(msgspec.json.decode(body, type=TellLimits), self._now())
            elif path == SERVICE_PATH:
                answer = self._service.tell(msgspec.json.decode(body, type=TellService))
            elif path == CELLS_PATH:
                msgspec.json.decode(body, type=AskCells)
                answer = None if self.cells is None else PeerCells(list(self.cells))
            else:
                return 404, b""
        except msgspec.DecodeError as error:
            logger.error("A cell's message is malformed: %s", error)
            return 400, b""
        return (409, b"") if answer is None else (200, msgspec.json.encode(answer))


async def _read(receive: _Receive) -> bytes | None:
    """Return a body; None where it is too long."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _MOST_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


class BankServer:
    """Serves a bank from a thread of its own.

    Args:
        key: What cells show.
        port: Of 127.0.0.1.
    """

    def __init__(self, key: str, port: int) -> None:
        self._port = port
        self._bank = Bank(key)
        config = uvicorn.Config(
            self._bank, host="127.0.0.1", port=port, log_level="warning", access_log=False
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="bank", daemon=True)

    def start(self) -> None:
        """Listen.

        Raises:
            CommandError: The port is not free.
        """
        self._thread.start()
        give_up_s = time.monotonic() + _START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > give_up_s:
                raise CommandError(
                    f"the bank cannot listen at port {self._port}; choose another front.bank.port."
                )
            time.sleep(0.02)

    def show_cells(self, cells: Sequence[PeerCell]) -> None:
        """Have cells know of these from now on."""
        self._bank.cells = cells

    def stop(self) -> None:
        """Listen no more."""
        self._server.should_exit = True
        self._thread.join()
