"""A standing connection to an actor that Ray replaces when it dies: a router, or the ledger."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import zmq

from serve_app.messages import Endpoint
from serve_app.wire import Frames, Link

logger = logging.getLogger(__name__)

FindEndpoint = Callable[[], Awaitable[Endpoint]]
"""Asks Ray for an actor's present endpoint; may wait while the actor starts."""

_RETRY_S = 0.5


class StandingLink:
    """Finds the actor, stays connected, finds it again when it was replaced.

    What is sent while there is no connection is dropped: `on_connect` says everything that a
    new actor must know.

    Args:
        name: The actor's, for log lines.
        find: How to find it.
        identity: This end's name; stays the same over reconnections.
        on_message: Called with each message's frames.
        on_connect: Called after every (re)connection, before anything else is sent.
    """

    def __init__(
        self,
        name: str,
        find: FindEndpoint,
        identity: bytes,
        on_message: Callable[[list[zmq.Frame]], None],
        on_connect: Callable[[], None],
    ) -> None:
        self._name = name
        self._find = find
        self._identity = identity
        self._on_message = on_message
        self._on_connect = on_connect
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether messages reach it at present, as far as is known."""
        return self._link is not None

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._task = asyncio.create_task(self._run(), name=f"link to {self._name}")

    def send(self, frames: Frames) -> None:
        """Sends if connected."""
        if self._link is not None:
            self._link.send(frames)

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
                logger.warning("The %s cannot be found yet (%s); trying again.", self._name, error)
            await asyncio.sleep(_RETRY_S)

    async def _stay_connected(self, endpoint: Endpoint) -> None:
        lost = asyncio.Event()
        self._link = Link(endpoint, self._identity, self._on_message, lost.set)
        try:
            self._on_connect()
            await lost.wait()
            logger.info("The connection to the %s is lost; looking for its successor.", self._name)
        finally:
            if self._link is not None:
                self._link.close()
                self._link = None
