"""A closed-loop load client for OpenAI-compatible servers, light enough to share their machine.

N clients each hold one connection and send their next request when the last answer has ended.
They speak HTTP/1.1 on raw asyncio transports and look into an event's JSON only at the end of an
answer, so that a token costs some tens of microseconds; the client's own CPU time is reported.

What is measured, for streams: `ttft_s` from the request's sending to the first event;
`itl_s` between two arrivals of events. Events that come in one read are one arrival: a server
that holds tokens back and sends five at once shows one long gap, not four of zero.

An answer that is not exactly what was asked for (tokens, reason to stop, usage) is an error.
"""

import asyncio
import json
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

_DEADLINE_S = 300.0
_MAX_ERRORS_KEPT = 5
_EVENT_END = b"\n\n"
_DONE = b"data: [DONE]"
_PART = b"x-arriero-"

Percentiles = dict[str, float]


@dataclass(frozen=True)
class Ask:
    """One request as it goes over the wire, and what a right answer to it says.

    Args:
        path: Such as `/v1/completions`.
        body: JSON.
        is_stream: Whether the answer is a stream of events.
        prompt_tokens: What usage must say; None does not check.
        completion_tokens: What usage must say; None does not check.
        key: API key; a server without keys ignores it.
        reason: What `finish_reason` must say.
    """

    path: str
    body: bytes
    is_stream: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    key: str = "bench"
    reason: str = "length"


@dataclass
class Answer:
    """What one request met. Times are of the monotonic clock."""

    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)
    n_events: int = 0
    """Events with output in them; several may arrive at once."""
    ended_s: float = 0.0
    left_s: float = 0.0
    """When the client hung up before the end; 0 where it did not."""
    completion_tokens: int = 0
    error: str = ""
    parts_ms: dict[str, float] = field(default_factory=dict)
    """Where the time to the first token went, as the platform says in its headers."""

    @property
    def ttft_s(self) -> float:
        """Seconds from request to first event."""
        return self.arrivals_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        """Seconds from request to the answer's end."""
        return self.ended_s - self.sent_s

    @property
    def itls_s(self) -> list[float]:
        """Seconds between arrivals."""
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return [later - earlier for earlier, later in pairs]


@dataclass(frozen=True)
class LoadResult:
    """One closed-loop run: `clients` at a time until every request was answered."""

    clients: int
    wall_s: float
    client_cpu_s: float
    answers: tuple[Answer, ...]

    @property
    def good(self) -> list[Answer]:
        """Answers that were right."""
        return [answer for answer in self.answers if not answer.error]

    @property
    def errors(self) -> list[str]:
        """Texts of what went wrong, the first few."""
        return [answer.error for answer in self.answers if answer.error][:_MAX_ERRORS_KEPT]

    @property
    def n_errors(self) -> int:
        """Requests that went wrong."""
        return len(self.answers) - len(self.good)

    @property
    def output_tokens(self) -> int:
        """Tokens in right answers, as the server's usage says."""
        return sum(answer.completion_tokens for answer in self.good)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, all clients together."""
        return self.output_tokens / self.wall_s

    @property
    def requests_per_s(self) -> float:
        """Right answers per second."""
        return len(self.good) / self.wall_s

    @property
    def ttft_s(self) -> Percentiles:
        """Percentiles of the time to the first event."""
        return percentiles([answer.ttft_s for answer in self.good])

    @property
    def itl_s(self) -> Percentiles:
        """Percentiles of the time between arrivals, over all requests."""
        return percentiles([gap for answer in self.good for gap in answer.itls_s])

    @property
    def e2e_s(self) -> Percentiles:
        """Percentiles of whole requests."""
        return percentiles([answer.e2e_s for answer in self.good])


def percentiles(values: Sequence[float]) -> Percentiles:
    """Returns p50, p95 and p99, each a value that occurred; zeros for no values."""
    ordered = sorted(values) or [0.0]
    last = len(ordered) - 1
    return {f"p{p}": ordered[round(last * p / 100)] for p in (50, 95, 99)}


def completion_asks(
    model: str, prompt_tokens: int, output_tokens: int, rng: random.Random
) -> Iterator[Ask]:
    """Yields streamed completions of random tokens, so that no prompt has a cached prefix.

    Args:
        model: Name on the server.
        prompt_tokens: Length of each prompt.
        output_tokens: Exact length of each answer.
        rng: Draws the prompts; the same seed gives the same prompts.
    """
    while True:
        yield completion_ask(model, draw_prompt(prompt_tokens, rng), output_tokens)


def draw_prompt(n_tokens: int, rng: random.Random) -> list[int]:
    """Returns random tokens; none is special, and none is below 1,000."""
    return rng.choices(range(1_000, 40_000), k=n_tokens)


def completion_ask(
    model: str,
    prompt: list[int],
    output_tokens: int,
    *,
    key: str = "bench",
    stop: tuple[int, int] | None = None,
) -> Ask:
    """Returns a streamed completion.

    Args:
        model: Name on the server.
        prompt: Its tokens.
        output_tokens: Exact length of the answer.
        key: API key.
        stop: A token that ends the answer, and the `max_tokens` that is asked for in spite of it.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if stop is None:
        body |= {"max_tokens": output_tokens, "min_tokens": output_tokens}
    else:
        body |= {"max_tokens": stop[1], "stop_token_ids": [stop[0]]}
    return Ask(
        "/v1/completions",
        json.dumps(body).encode(),
        True,
        len(prompt),
        output_tokens,
        key,
        "length" if stop is None else "stop",
    )


def chat_asks(
    model: str, output_tokens: int, rng: random.Random, *, is_stream: bool
) -> Iterator[Ask]:
    """Yields short chat requests, each with a prompt of its own of a length that is not fixed."""
    while True:
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": f"Tell me about {rng.randrange(10**9)}."}],
            "max_tokens": output_tokens,
            "stream": is_stream,
        }
        if is_stream:
            body["stream_options"] = {"include_usage": True}
        yield Ask("/v1/chat/completions", json.dumps(body).encode(), is_stream, None, output_tokens)


async def run_load(
    base_url: str,
    asks: Iterator[Ask],
    clients: int,
    n_requests: int,
    on_progress: Callable[[int], None] | None = None,
) -> LoadResult:
    """Sends `n_requests` requests, `clients` at a time, and returns when all have ended."""
    left = iter(list_first(asks, n_requests))
    answers: list[Answer] = []
    cpu_s, started_s = _cpu_s(), time.monotonic()

    async def be_client() -> None:
        connection = Connection(base_url)
        try:
            for ask in left:
                answers.append(await connection.ask(ask))
                if on_progress is not None:
                    on_progress(len(answers))
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(be_client())
    wall_s = time.monotonic() - started_s
    return LoadResult(clients, wall_s, _cpu_s() - cpu_s, tuple(answers))


def list_first(asks: Iterator[Ask], n: int) -> list[Ask]:
    """Draws requests before the clock starts."""
    return [next(asks) for _ in range(n)]


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Connection(asyncio.Protocol):
    """One keep-alive connection and the request that is on it."""

    def __init__(self, base_url: str) -> None:
        url = urlsplit(base_url)
        self._host, self._port = url.hostname or "127.0.0.1", url.port or 80
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._body = bytearray()
        self._is_keep_alive = True
        self._output_mark = b""
        """What every event with output in it has, and no other."""
        self._answer = Answer(0.0)
        self._done: asyncio.Future[None] | None = None

    async def ask(self, ask: Ask, answer: Answer | None = None) -> Answer:
        """Sends one request and returns what came of it; never raises for a bad answer.

        Args:
            ask: The request.
            answer: Is filled as the answer comes, so that what came before a cancellation is known.
        """
        loop = asyncio.get_running_loop()
        answer = self._answer = answer or Answer(time.monotonic())
        self._done = loop.create_future()
        self._body.clear()
        self._output_mark = b'"delta"' if "chat" in ask.path else b'"text"'
        self._parser = httptools.HttpResponseParser(self)
        try:
            async with asyncio.timeout(_DEADLINE_S):
                if self._transport is None:
                    await loop.create_connection(lambda: self, self._host, self._port)
                if self._transport is None:
                    raise ConnectionResetError("the server closed the connection at once")
                answer.sent_s = time.monotonic()
                self._transport.write(self._head(ask) + ask.body)
                await self._done
            answer.ended_s = time.monotonic()
            self._check(ask, answer)
        except (OSError, TimeoutError, httptools.HttpParserError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        if answer.error or not self._is_keep_alive:
            self.close()
        return answer

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _head(self, ask: Ask) -> bytes:
        return (
            f"POST {ask.path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Authorization: Bearer {ask.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(ask.body)}\r\n\r\n"
        ).encode()

    def _check(self, ask: Ask, answer: Answer) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            answer.error = f"status {status}: {bytes(self._body[:300])!r}"
            return
        try:
            usage = _read_usage(self._body, ask)
        except (ValueError, LookupError, TypeError) as error:
            answer.error = f"{error}: …{bytes(self._body[-300:])!r}"
            return
        answer.completion_tokens = usage["completion_tokens"]
        for name in ("prompt_tokens", "completion_tokens"):
            wanted = getattr(ask, name)
            if wanted is not None and usage[name] != wanted:
                answer.error = f"{name} is {usage[name]}, not {wanted}"

    # --- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parses what came, and notes the time if there was output in it."""
        length = len(self._body)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
            return
        # The parser has called on_body for what came. Usage, a comment or the end is no arrival.
        n = self._body.count(self._output_mark, max(0, length - len(self._output_mark) + 1))
        if n:
            self._answer.n_events += n
            self._answer.arrivals_s.append(time.monotonic())

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails the request that was on it."""
        self._transport = None
        self._fail(exc or ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    # --- httptools' callbacks ---------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps what the platform says of where the time went."""
        if name.startswith(_PART) and name.endswith(b"-ms"):
            self._answer.parts_ms[name[len(_PART) : -3].decode()] = float(value)

    def on_body(self, body: bytes) -> None:
        """Keeps a part of the answer."""
        self._body += body

    def on_message_complete(self) -> None:
        """Ends the request."""
        self._is_keep_alive = self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def _read_usage(body: bytearray, ask: Ask) -> dict[str, int]:
    """Reads usage out of an answer, and checks that the answer stopped for the right reason.

    Raises:
        ValueError: The answer has an error in it, no usage, another end, or is no JSON.
    """
    if not ask.is_stream:
        whole = json.loads(body)
        _check_reason(whole["choices"][0]["finish_reason"], ask.reason)
        return _usage_of(whole)
    events = bytes(body).strip().replace(b"\r\n", b"\n").split(_EVENT_END)
    # Who waits long gets comments, lest a proxy cut the stream.
    events = [event for event in events if not event.startswith(b":")]
    if events[-1] != _DONE:
        raise ValueError("the stream has no [DONE] at its end")
    last = [json.loads(event.removeprefix(b"data: ")) for event in events[-4:-1]]
    reasons = [c.get("finish_reason") for event in last for c in event.get("choices", [])]
    _check_reason(next((reason for reason in reasons if reason), None), ask.reason)
    return _usage_of(last[-1])


def _check_reason(reason: str | None, wanted: str) -> None:
    if reason != wanted:
        raise ValueError(f"finish_reason is {reason!r}, not {wanted!r}")


def _usage_of(message: dict[str, Any]) -> dict[str, int]:
    usage = message.get("usage")
    if not usage:
        raise ValueError("there is no usage")
    return {name: int(usage[name]) for name in ("prompt_tokens", "completion_tokens")}
