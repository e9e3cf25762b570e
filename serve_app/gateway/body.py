"""Reading a request's body: never more of it than is allowed."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.gateway.error_body import ApiError

_HANG_UP_S = 0.3


class ClientGoneError(Exception):
    """The client hung up before its request was complete."""


@dataclass(frozen=True)
class Outer:
    """The connection to the client."""

    receive: Receive
    send: Send


class Peek(msgspec.Struct):
    """The part of a body that says where it goes."""

    model: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None

    @property
    def is_max_tokens_given(self) -> bool:
        """Whether the client bounds its completions, under any of the names that APIs have."""
        names = (self.max_tokens, self.max_completion_tokens, self.max_output_tokens)
        return any(name is not None for name in names)


_peek_decoder = msgspec.json.Decoder(Peek)


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """Reads the body whole.

    Raises:
        ApiError: 413, as soon as it is known to be longer than `max_bytes`.
        ClientGoneError: There is nobody to answer.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > max_bytes:
            raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"The request body is larger than {max_bytes} bytes, the limit of gateway.max_body_bytes. "
        "Send a shorter one.",
    )


def peek(body: bytes) -> Peek:
    """Returns the part of a body that says where it goes; its `model` is a string or None.

    Raises:
        ApiError: 400; the body is no JSON object, or `model` is no string.
    """
    try:
        seen = _peek_decoder.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError(400, f"The request body is not a JSON object: {error}.") from error
    except RecursionError as error:
        raise ApiError(400, "The request body is JSON that is nested too deeply.") from error
    if seen.model is not None and not isinstance(seen.model, str):
        raise ApiError(400, "The parameter 'model' must be a string.", param="model")
    return seen


class Replay:
    """A `receive` that gives the body again, and then a disconnect once the client is gone."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._gone = asyncio.Event()

    def hang_up(self) -> None:
        """Says that the client is gone."""
        self._gone.set()

    async def __call__(self) -> Message:
        """Returns the next message (ASGI)."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def run_until_hang_up(app: ASGIApp, scope: Scope, body: bytes, outer: Outer) -> None:
    """Runs an application over a body that was read already; ends it when the client goes away.

    vLLM's unary routes start a task of their own and end it when they receive a disconnect; being
    cancelled they would leave it, and its request in the engine, running. Its streams end when
    they are cancelled. So first the one, then the other.
    """
    receive = Replay(body)
    work = asyncio.ensure_future(app(scope, receive, outer.send))
    watch = asyncio.ensure_future(wait_for_disconnect(outer.receive))
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not work.done():
            receive.hang_up()
            await asyncio.wait((work,), timeout=_HANG_UP_S)
            work.cancel()
            await asyncio.wait((work,), timeout=_HANG_UP_S)
    if not work.cancelled():
        await work


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client of a request that was read is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
