"""A gateway's or engine's standing connection to the router of one base model."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
import zmq

from serve_app.messages import Endpoint, EngineMail, GatewayMail, RouterMail
from serve_app.wire import Link

logger = logging.getLogger(__name__)

FindRouter = Callable[[], Awaitable[Endpoint]]
"""Asks Ray for the router's present endpoint; may wait while the router starts."""

_RETRY_S = 0.5


class RouterLink:
    """Finds the router, stays connected, finds it again when it was replaced.

    What is sent while there is no connection is dropped: `on_connect` says everything that a
    new router must know.

    Args:
        find: How to find the router.
        identity: This end's name; stays the same over reconnections.
        on_mail: Called with each message.
        on_connect: Called after every (re)connection, before anything else is sent.
    """

    def __init__(
        self,
        find: FindRouter,
        identity: bytes,
        on_mail: Callable[[GatewayMail | EngineMail], None],
        on_connect: Callable[[], None],
    ) -> None:
        self._find = find
        self._identity = identity
        self._on_mail = on_mail
        self._on_connect = on_connect
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(GatewayMail | EngineMail)
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether messages reach a router at present, as far as is known."""
        return self._link is not None

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._task = asyncio.create_task(self._run(), name="router-link")

    def send(self, mail: RouterMail) -> None:
        """Sends if connected."""
        if self._link is not None:
            self._link.send([self._encoder.encode(mail)])

    def close(self) -> None:
        """Disconnects for good."""
        if self._task is not None:
            self._task.cancel()
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _run(self) -> None:
        while True:
            try:
                endpoint = await self._find()
                await self._stay_connected(endpoint)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logger.warning("The router cannot be found yet (%s); trying again.", error)
            await asyncio.sleep(_RETRY_S)

    async def _stay_connected(self, endpoint: Endpoint) -> None:
        lost = asyncio.Event()
        self._link = Link(endpoint, self._identity, self._receive, lost.set)
        try:
            self._on_connect()
            await lost.wait()
            logger.info("The connection to the router is lost; looking for its successor.")
        finally:
            if self._link is not None:
                self._link.close()
                self._link = None

    def _receive(self, frames: list[zmq.Frame]) -> None:
        self._on_mail(self._decoder.decode(frames[0].buffer))
