from collections.abc import Sequence

import pytest
from starlette.types import Message, Receive

from serve_app.gateway.body import ClientGoneError, peek, read_body
from serve_app.gateway.error_body import ApiError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LIMIT = 10


def receive_from(messages: Sequence[Message]) -> Receive:
    """A client that sends these and fails the test when more is asked of it."""
    left = list(messages)

    async def receive() -> Message:
        assert left, "the body was read further than it should be"
        return left.pop(0)

    return receive


def chunk(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def read(messages: Sequence[Message], length: bytes | None = None) -> bytes:
    headers = [] if length is None else [(b"content-length", length)]
    return await read_body({"headers": headers}, receive_from(messages), LIMIT)


async def test_body_of_the_longest_length_is_read_whole() -> None:
    assert await read([chunk(b"01234"), chunk(b"56789", more=False)]) == b"0123456789"


async def test_announced_length_beyond_the_limit_is_413_before_anything_is_read() -> None:
    with pytest.raises(ApiError) as caught:
        await read([], length=b"11")
    assert caught.value.status == 413
    assert "10" in caught.value.message


async def test_body_beyond_the_limit_is_413_as_soon_as_it_is_known() -> None:
    with pytest.raises(ApiError) as caught:
        await read([chunk(b"01234"), chunk(b"567890")], length=b"3")
    assert caught.value.status == 413


async def test_client_that_hangs_up_is_not_answered() -> None:
    with pytest.raises(ClientGoneError):
        await read([chunk(b"0"), {"type": "http.disconnect"}])


def test_model_is_found_in_the_body() -> None:
    assert peek(b'{"messages": [{"model": "no"}], "model": "tiny"}').model == "tiny"
    assert peek(b'{"messages": []}').model is None
    assert peek(b'{"model": null}').model is None


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"1", b"\xff", b'{"model": "x"', b"[" * 100_000, b'{"a":' * 100_000],
)
def test_body_that_is_no_json_object_is_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        peek(body)
    assert caught.value.status == 400
    assert "JSON" in caught.value.message


@pytest.mark.parametrize("model", [b"1", b"[]", b"{}", b"true"])
def test_model_that_is_no_text_is_400_and_named(model: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        peek(b'{"model": ' + model + b"}")
    assert (caught.value.status, caught.value.param) == (400, "model")
