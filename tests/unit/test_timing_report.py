import json
from typing import Any

import pytest
from starlette.types import Message

from serve_app import telemetry
from serve_app.gateway.timing_report import LastChunk, report, timing_headers, wants_last_chunk
from serve_app.gateway.timings import Timings

TIMINGS = Timings(
    gateway_s=0.00123,
    queue_s=1.5,
    router_s=0.0004,
    engine_s=0.02,
    has_been_sent=True,
    has_first_token=True,
    moves=2,
    engine_id="engine-1",
)
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}


def encode(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


class Client:
    def __init__(self, path: str) -> None:
        telemetry.request_id.set("req-1")
        self.text = b""
        self.send = LastChunk(self._take, path, lambda: TIMINGS)

    async def _take(self, message: Message) -> None:
        self.text += message.get("body", b"")

    async def play(self, *bodies: bytes, kind: bytes = b"text/event-stream") -> bytes:
        headers = [(b"content-type", kind)]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in bodies:
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})
        return self.text


def test_headers_are_milliseconds_and_say_only_what_was() -> None:
    assert dict(timing_headers(TIMINGS)) == {
        b"x-arriero-gateway-ms": b"1.2",
        b"x-arriero-queue-ms": b"1500.0",
        b"x-arriero-router-ms": b"0.4",
        b"x-arriero-adapter-load-ms": b"0.0",
        b"x-arriero-engine-ttft-ms": b"20.0",
        b"x-arriero-ttft-ms": b"1521.6",
        b"x-arriero-migrations": b"2",
        b"x-arriero-engine": b"engine-1",
    }
    assert report(Timings(0.25)) == {"gateway_ms": 250.0}


@pytest.mark.parametrize(("text", "wants"), [("true", True), ("1", True), ("no", False)])
def test_last_chunk_is_for_who_asks(text: str, wants: bool) -> None:
    assert wants_last_chunk({"x-arriero-timings": text}) is wants
    assert not wants_last_chunk({})


async def test_chunk_without_choices_comes_before_the_end() -> None:
    first = encode({**CHUNK, "choices": [{"index": 0}]})
    text = await Client("/v1/chat/completions").play(first, b": still here\n\ndata: [DONE]\n\n")
    events = text.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")
    assert events[:2] == [first.strip(), b": still here"]
    last = json.loads(events[2].removeprefix(b"data: "))
    assert {name: last[name] for name in CHUNK} == CHUNK
    assert last["choices"] == []
    assert last["arriero"] == {"request_id": "req-1", **report(TIMINGS)}


async def test_stream_of_named_events_ends_with_one_more() -> None:
    text = await Client("/v1/messages").play(b"event: message_stop\ndata: {}\n\n")
    first, second, rest = text.split(b"\n\n")
    assert first == b"event: message_stop\ndata: {}"
    assert second.startswith(b'event: arriero.timings\ndata: {"type":"arriero.timings",')
    assert rest == b""


async def test_answer_that_is_no_stream_stays_as_it_is() -> None:
    text = await Client("/v1/chat/completions").play(b'{"id": "c"}', kind=b"application/json")
    assert text == b'{"id": "c"}'
