"""A fake OpenAI server without an engine, for a proxy to stand in front of: `EchoEngine`'s twin.

It answers `/v1/chat/completions` at once, or streams one token an event at a set pace. One process,
raw asyncio: it must never be what limits the proxy before it.

    python -m bench.fake_openai PORT TOKENS_PER_S
"""

import asyncio
import json
import sys
import time
from typing import Any, cast

import httptools
import uvloop

_MODEL = "fake"
_PROMPT_TOKENS = 12
_JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class FakeOpenAi(asyncio.Protocol):
    """One connection.

    Args:
        tokens_per_s: Pace of one stream.
    """

    def __init__(self, tokens_per_s: float) -> None:
        self._step_s = 1.0 / tokens_per_s
        self._parser: Any = httptools.HttpRequestParser(self)
        self._body = b""
        self._transport: asyncio.Transport
        self._stream: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: it has gone."""
        if self._stream is not None:
            self._stream.cancel()

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have come."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """httptools: a part of a request's body."""
        self._body += body

    def on_message_complete(self) -> None:
        """httptools: a request is complete."""
        body, self._body = self._body, b""
        request = json.loads(body) if body else {}
        n_tokens = int(request.get("max_tokens") or 16)
        if request.get("stream"):
            self._stream = asyncio.create_task(self._send_stream(n_tokens))
        else:
            answer = json.dumps(_whole(n_tokens)).encode()
            self._transport.write(_JSON_HEAD % len(answer) + answer)

    async def _send_stream(self, n_tokens: int) -> None:
        self._transport.write(_STREAM_HEAD)
        started_s = time.monotonic()
        for n in range(n_tokens):
            ahead_s = started_s + n * self._step_s - time.monotonic()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            # No two alike: LiteLLM ends a stream that repeats itself.
            self._send_event(_TOKEN.replace(b"echo", b"%d" % n) if n else _FIRST_TOKEN)
        self._send_event(_event({}, "length"))
        self._send_event(
            json.dumps({**_frame(), "choices": [], "usage": _usage(n_tokens)}).encode()
        )
        self._send_event(b"[DONE]")
        self._transport.write(b"0\r\n\r\n")

    def _send_event(self, data: bytes) -> None:
        self._transport.write(b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data))


def _frame(kind: str = "chat.completion.chunk") -> dict[str, Any]:
    return {"id": "chatcmpl-fake", "object": kind, "created": 1_700_000_000, "model": _MODEL}


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return json.dumps({**_frame(), "choices": [choice]}).encode()


_FIRST_TOKEN = _event({"role": "assistant", "content": "echo"})
_TOKEN = _event({"content": " echo"})


def _usage(n_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": _PROMPT_TOKENS,
        "completion_tokens": n_tokens,
        "total_tokens": _PROMPT_TOKENS + n_tokens,
    }


def _whole(n_tokens: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": " echo" * n_tokens}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    return {**_frame("chat.completion"), "choices": [choice], "usage": _usage(n_tokens)}


async def _serve(port: int, tokens_per_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FakeOpenAi(tokens_per_s), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
