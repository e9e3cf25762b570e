"""Links over real sockets: order, the key, the loss."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import zmq

from serve_app.messages import Endpoint
from serve_app.wire import Link, Listener

_HOST = "127.0.0.1"


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    found = Listener(_HOST)
    yield found
    found.close()


class Inbox:
    """What one end of a link received, and how often it was lost."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.n_losses = 0
        self._news = asyncio.Event()

    def take(self, frames: list[zmq.Frame]) -> None:
        self.messages.append(b"|".join(bytes(frame.buffer) for frame in frames))
        self._news.set()

    def lose(self) -> None:
        self.n_losses += 1
        self._news.set()

    async def wait_for_news(self) -> None:
        async with asyncio.timeout(20.0):
            await self._news.wait()
        self._news.clear()


async def test_messages_arrive_whole_and_in_order(listener: Listener) -> None:
    inbox = Inbox()
    link = Link(listener.endpoint, b"me", inbox.take, inbox.lose)
    for i in range(100):
        link.send([b"n", str(i).encode()])
    for i in range(100):
        sender, frames = await asyncio.wait_for(listener.receive(), 10.0)
        assert (sender, frames) == (b"me", [b"n", str(i).encode()])
    listener.send(b"me", [b"a", b"b"])
    await inbox.wait_for_news()
    assert inbox.messages == [b"a|b"]
    link.close()
    assert inbox.n_losses == 0


async def test_wrong_key_is_refused(listener: Listener) -> None:
    public, _ = zmq.curve_keypair()
    inbox = Inbox()
    link = Link(Endpoint(listener.endpoint.address, public), b"me", inbox.take, inbox.lose)
    link.send([b"let me in"])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(listener.receive(), 1.0)
    link.close()


async def test_peer_without_encryption_is_refused(listener: Listener) -> None:
    plain = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    plain.setsockopt(zmq.LINGER, 0)
    plain.connect(listener.endpoint.address)
    await plain.send(b"let me in")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(listener.receive(), 1.0)
    plain.close()


async def test_loss_is_reported_once() -> None:
    listener = Listener(_HOST)
    inbox = Inbox()
    link = Link(listener.endpoint, b"me", inbox.take, inbox.lose)
    link.send([b"hello"])
    await asyncio.wait_for(listener.receive(), 10.0)
    listener.close()
    await inbox.wait_for_news()
    await asyncio.sleep(0.5)
    assert inbox.n_losses == 1
    link.send([b"into the void"])
    link.close()
    assert inbox.n_losses == 1


async def test_listener_that_is_not_there_is_a_loss() -> None:
    listener = Listener(_HOST)
    endpoint = listener.endpoint
    listener.close()
    inbox = Inbox()
    Link(endpoint, b"me", inbox.take, inbox.lose)
    await inbox.wait_for_news()
    assert inbox.n_losses == 1


async def test_message_that_breaks_its_reader_does_not_end_the_link(listener: Listener) -> None:
    inbox = Inbox()

    def take(frames: list[zmq.Frame]) -> None:
        if bytes(frames[0].buffer) == b"bad":
            raise ValueError("bad")
        inbox.take(frames)

    link = Link(listener.endpoint, b"me", take, inbox.lose)
    link.send([b"hello"])
    await listener.receive()
    listener.send(b"me", [b"bad"])
    listener.send(b"me", [b"good"])
    await inbox.wait_for_news()
    assert inbox.messages == [b"good"]
    link.close()


def test_key_of_an_endpoint_is_not_shown() -> None:
    endpoint = Endpoint("tcp://x:1", b"secret-key")
    assert "secret" not in f"{endpoint} {endpoint!r}"
