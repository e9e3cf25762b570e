"""Messages between actors over ZeroMQ: one listener, many links, encrypted, connection loss seen.

Ray starts the actors, finds them and replaces them; its calls cost about a millisecond of
processor time each, too much for one message a step. So actors ask each other over Ray for an
`Endpoint` once and then talk over a link (docs/decisions/0003-data-plane.md).

Authentication: every listener is a CURVE server with a key pair of its own. A client that does
not know the listener's public key cannot complete the handshake, and that key travels over
Ray's authenticated calls only.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from serve_app.messages import Endpoint

logger = logging.getLogger(__name__)

Frames = Sequence[bytes | bytearray | memoryview | zmq.Frame]

_HIGH_WATER_MESSAGES = 100_000
"""Far above what any peer leaves unread; a peer that is this far behind is dead."""


def listen(socket: "zmq.Socket[bytes] | zmq.asyncio.Socket", host: str) -> Endpoint:
    """Binds a ROUTER socket to a free port of `host` and returns how to reach it."""
    public, secret = zmq.curve_keypair()
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MESSAGES)
    # A gateway that reconnects takes its identity over from its broken connection.
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.curve_secretkey = secret
    socket.curve_publickey = public
    socket.curve_server = True
    if ":" in host:
        socket.setsockopt(zmq.IPV6, 1)
        host = f"[{host}]"
    port = socket.bind_to_random_port(f"tcp://{host}")
    return Endpoint(address=f"tcp://{host}:{port}", key=public)


class Mailbox(Protocol):
    """What a router does with its listener."""

    @property
    def endpoint(self) -> Endpoint:
        """Where others connect to."""

    async def receive(self) -> tuple[bytes, list[bytes]]:
        """Next message: the sender's identity and its frames."""

    def send(self, identity: bytes, frames: Frames) -> None:
        """Queues a message; one for a peer that has gone is dropped."""

    def close(self) -> None:
        """Stops at once."""


class Listener:
    """The asyncio side of a ROUTER: receives from every link and sends to one by its identity."""

    def __init__(self, host: str) -> None:
        self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self.endpoint = listen(self._socket, host)

    async def receive(self) -> tuple[bytes, list[bytes]]:
        """Next message: the sender's identity and its frames."""
        identity, *frames = await self._socket.recv_multipart()
        return identity, frames

    def send(self, identity: bytes, frames: Frames) -> None:
        """Queues a message. One for a peer that has gone is dropped: nobody would read it."""
        self._socket.send_multipart([identity, *frames], copy=True)

    def close(self) -> None:
        """Stops listening at once."""
        self._socket.close(linger=0)


class Link:
    """One connection to a listener. Messages arrive in order; its loss is reported once.

    Args:
        endpoint: Where to connect.
        identity: Names this end to the listener; unique among its links.
        on_message: Called with each message's frames, in order.
        on_lost: Called once when the peer is gone. The link is closed by then.
        silent_s: After so long without a sign of life from the peer's process it is gone.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        identity: bytes,
        on_message: Callable[[list[zmq.Frame]], None],
        on_lost: Callable[[], Awaitable[None] | None],
        silent_s: float = 10.0,
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._closed = False
        context = zmq.asyncio.Context.instance()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, _HIGH_WATER_MESSAGES)
        self._socket.setsockopt(zmq.RCVHWM, _HIGH_WATER_MESSAGES)
        self._socket.setsockopt(zmq.IDENTITY, identity)
        if "[" in endpoint.address:
            self._socket.setsockopt(zmq.IPV6, 1)
        # A listener that is gone never comes back under the same address and key.
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        # Answered by a thread of ZeroMQ's own: an interpreter that is busy is no reason.
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, int(200 * silent_s))
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(1000 * silent_s))
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, 5_000)
        self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
        self._socket.curve_serverkey = endpoint.key
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_CONNECT_RETRIED
            | zmq.EVENT_CLOSED
        )
        self._socket.connect(endpoint.address)
        self._tasks = [
            asyncio.create_task(self._receive(), name=f"link-receive {endpoint.address}"),
            asyncio.create_task(self._watch(), name=f"link-watch {endpoint.address}"),
        ]

    def send(self, frames: Frames) -> None:
        """Queues a message. After `close` it is dropped."""
        if not self._closed:
            self._socket.send_multipart(frames, copy=True)

    async def _receive(self) -> None:
        while True:
            frames = await self._socket.recv_multipart(copy=False)
            try:
                self._on_message(frames)
            except Exception:
                # One bad message must not end the conversation.
                logger.exception("A message could not be handled; it is dropped.")

    async def _watch(self) -> None:
        await recv_monitor_message(self._monitor)
        self.close()
        result = self._on_lost()
        if result is not None:
            await result

    def close(self) -> None:
        """Closes the link without reporting it as lost."""
        if self._closed:
            return
        self._closed = True
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
