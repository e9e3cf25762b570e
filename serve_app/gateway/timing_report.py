"""Tells clients where the time to their first token went: by headers, and at a stream's end.

A stream's headers leave with its first token, so they hold all but what comes later: moves to other
engines. Who sends `x-arriero-timings: true` gets one more event at the stream's end that has all.
It is a chunk without choices, as OpenAI's own chunk of usage is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.types import Message, Send

from serve_app import telemetry
from serve_app.gateway.answer import is_event_stream
from serve_app.gateway.timings import Timings

ASK_HEADER = "x-arriero-timings"
_FIELD = "arriero"
_DONE_EVENT = b"data: [DONE]\n\n"
_EVENT_PREFIX = b"data: {"
_TIMES = ("gateway_ms", "queue_ms", "router_ms", "adapter_load_ms", "engine_ttft_ms", "ttft_ms")
_HEADERS = {
    name: f"x-arriero-{name.replace('_', '-')}".encode()
    for name in (*_TIMES, "migrations", "engine")
}
_COPIED = ("id", "object", "created", "model")
"""What every chunk of a stream has in common."""


def wants_last_chunk(headers: Mapping[str, str]) -> bool:
    """Whether a client asks for the timings at the end of its stream."""
    return headers.get(ASK_HEADER, "").strip().lower() in ("true", "1")


def timing_headers(timings: Timings) -> list[tuple[bytes, bytes]]:
    """Returns the headers of an answer. Milliseconds, to a tenth each."""
    return [(_HEADERS[name], str(value).encode()) for name, value in report(timings).items()]


def report(timings: Timings) -> dict[str, float | int | str]:
    """Returns the same as a client reads it anywhere; what never happened is left out."""
    fields: dict[str, float | int | str] = {"gateway_ms": _ms(timings.gateway_s)}
    if timings.has_been_sent:
        fields |= {
            "queue_ms": _ms(timings.queue_s),
            "router_ms": _ms(timings.router_s),
            "adapter_load_ms": _ms(timings.adapter_load_s),
            "engine_ttft_ms": _ms(timings.engine_s),
        }
    if timings.has_first_token:
        fields["ttft_ms"] = _ms(timings.ttft_s)
    if timings.has_been_sent:
        fields["migrations"] = timings.moves
    if timings.engine_id:
        fields["engine"] = timings.engine_id
    return fields


class LastChunk:
    """A `send` that adds the timings to a stream's end.

    Args:
        send: Where the answer goes.
        path: The request's; decides the form.
        read: Says where the time went.
    """

    def __init__(self, send: Send, path: str, read: Callable[[], Timings]) -> None:
        self._send = send
        self._path = path
        self._read = read
        self._is_stream = False
        self._common: dict[str, Any] | None = None

    async def __call__(self, message: Message) -> None:
        """Passes one message on (ASGI)."""
        if message["type"] == "http.response.start":
            self._is_stream = is_event_stream(message)
        elif self._is_stream:
            message = {**message, "body": self._extend(message)}
        await self._send(message)

    def _extend(self, message: Message) -> bytes:
        body: bytes = message.get("body", b"")
        if self._path in ("/v1/chat/completions", "/v1/completions"):
            if self._common is None and body.startswith(_EVENT_PREFIX):
                self._common = _read_common(body)
            if body.endswith(_DONE_EVENT) and self._common is not None:
                return body.removesuffix(_DONE_EVENT) + self._chunk(self._common) + _DONE_EVENT
        elif not message.get("more_body", False):
            return body + self._event()
        return body

    def _chunk(self, common: dict[str, Any]) -> bytes:
        chunk = {**common, "choices": [], _FIELD: self._fields()}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _event(self) -> bytes:
        """Streams of named events get one more kind."""
        kind = f"{_FIELD}.timings"
        event = {"type": kind, _FIELD: self._fields()}
        return f"event: {kind}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n"

    def _fields(self) -> dict[str, float | int | str]:
        return {"request_id": telemetry.request_id.get(), **report(self._read())}


def _read_common(event: bytes) -> dict[str, Any] | None:
    data = event.removeprefix(b"data: ").partition(b"\n")[0]
    try:
        first = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError:
        return None
    return {name: first[name] for name in _COPIED if name in first}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
