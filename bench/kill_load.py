"""Streams that are asked for while engines die, and what their clients saw."""

import json
import time
from dataclasses import dataclass, field

import httpx

from serve_app.names import ModelName

MODEL = ModelName("bench")


@dataclass(frozen=True)
class Question:
    """What may be asked, and the only right answer to it."""

    prompt: tuple[int, ...]
    max_tokens: int
    answer: tuple[int, ...] = ()


@dataclass
class Stream:
    """One request and what came of it."""

    name: str
    question: Question
    ids: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    error: str = "not ended"
    usage: tuple[int, int] = (0, 0)


async def ask(url: str, client: httpx.AsyncClient, stream: Stream) -> None:
    """Sends a request and reads its stream to the end, whatever that is."""
    body = {
        "model": MODEL,
        "prompt": list(stream.question.prompt),
        "max_tokens": stream.question.max_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"x-request-id": stream.name}
    try:
        async with client.stream(
            "POST", f"{url}/v1/completions", json=body, headers=headers
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    _take(stream, line.removeprefix("data: "))
    except httpx.HTTPError as error:
        stream.error = repr(error)


def _take(stream: Stream, data: str) -> None:
    if data == "[DONE]":
        stream.error = stream.error if stream.error != "not ended" else ""
        return
    event = json.loads(data)
    if "error" in event:
        stream.error = str(event["error"])
        return
    for choice in event["choices"]:
        stream.ids += choice["token_ids"] or []
        stream.times_s.append(time.monotonic())
    if event.get("usage"):
        stream.usage = (event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"])
