"""Clients of a gateway, as its users have them."""

import json
from typing import Any

import httpx
import openai

NO_KEY = "not-needed"


def connect(url: str, key: str = NO_KEY) -> openai.OpenAI:
    """The official client. It does not try again, so that every answer is seen."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60.0)


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
