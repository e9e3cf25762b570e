"""A gateway's or engine's standing connection to the router of one base model."""

from collections.abc import Callable

import msgspec
import zmq

from serve_app.messages import EngineMail, GatewayMail, RouterMail
from serve_app.standing_link import FindEndpoint, StandingLink

FindRouter = FindEndpoint


class RouterLink:
    """A `StandingLink` that speaks the router's language.

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
        self._on_mail = on_mail
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(GatewayMail | EngineMail)
        self._link = StandingLink("router", find, identity, self._receive, on_connect)

    @property
    def is_connected(self) -> bool:
        """Whether messages reach a router at present, as far as is known."""
        return self._link.is_connected

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._link.start()

    def send(self, mail: RouterMail) -> None:
        """Sends if connected."""
        self._link.send([self._encoder.encode(mail)])

    def close(self) -> None:
        """Disconnects for good."""
        self._link.close()

    def _receive(self, frames: list[zmq.Frame]) -> None:
        self._on_mail(self._decoder.decode(frames[0].buffer))
