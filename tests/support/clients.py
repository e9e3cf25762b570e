"""Clients of a gateway, as its users have them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import openai

NO_KEY = "not-needed"

_made: list[openai.OpenAI | anthropic.Anthropic] = []


@contextmanager
def closed_clients() -> Iterator[None]:
    """Closes the clients that are made meanwhile.

    One that is left to the garbage collector may lose its sockets before it closes them, and the
    warning of that is an error in whichever test runs by then.
    """
    n_before = len(_made)
    yield
    for client in _made[n_before:]:
        client.close()
    del _made[n_before:]


def connect(url: str, key: str = NO_KEY) -> openai.OpenAI:
    """The official client. It does not try again, so that every answer is seen."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60.0)
    _made.append(client)
    return client


def connect_anthropic(url: str) -> anthropic.Anthropic:
    """Anthropic's client. It does not try again."""
    client = anthropic.Anthropic(base_url=url, api_key=NO_KEY, max_retries=0)
    _made.append(client)
    return client


def connect_async(url: str, key: str = NO_KEY) -> openai.AsyncOpenAI:
    """The official asynchronous client. It does not try again."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60.0)


def ask(content: str = "One two three four five") -> list[Any]:
    """A conversation's messages."""
    return [{"role": "user", "content": content}]


def post(url: str, path: str, body: Any, **headers: str) -> httpx.Response:
    """Sends a body as it is when it is bytes, else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        f"{url}{path}",
        content=content,
        headers={"content-type": "application/json", **headers},
        timeout=60.0,
    )


def read_error(response: httpx.Response) -> dict[str, Any]:
    """The error object of an answer, checked to have OpenAI's form."""
    body = response.json()
    assert set(body) == {"error"}, body
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert "Traceback" not in response.text
    return error


def read_events(text: str) -> list[str]:
    """The data of each server-sent event."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
