"""Reading a request's body: never more of it than is allowed."""

from typing import Any

import msgspec
from starlette.types import Message, Receive, Scope

from serve_app.gateway.error_body import ApiError


class ClientGoneError(Exception):
    """The client hung up before its request was complete."""


class Peek(msgspec.Struct):
    """The part of a body that says where it goes."""

    model: Any = None


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


def peek_model(body: bytes) -> str | None:
    """Returns the body's `model`, or None where it names none.

    Raises:
        ApiError: 400; the body is no JSON object, or `model` is no string.
    """
    try:
        model = _peek_decoder.decode(body).model
    except msgspec.DecodeError as error:
        raise ApiError(400, f"The request body is not a JSON object: {error}.") from error
    if model is not None and not isinstance(model, str):
        raise ApiError(400, "The parameter 'model' must be a string.", param="model")
    return model


def replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the body again and then what comes after it."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if not is_given:
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed
