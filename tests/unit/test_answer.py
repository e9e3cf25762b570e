import json
from typing import Any

import pytest
from starlette.types import Message
from vllm.exceptions import VLLMValidationError

from serve_app.gateway.answer import FrontEndAnswer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Client:
    """Who an answer goes to."""

    def __init__(self, path: str = "/v1/completions") -> None:
        self.messages: list[Message] = []
        self.answer = FrontEndAnswer(self._take, path, retry_after_s=3.0)

    async def _take(self, message: Message) -> None:
        self.messages.append(message)

    async def start(self, kind: bytes = b"text/event-stream", status: int = 200) -> None:
        headers = [(b"content-type", kind)]
        await self.answer({"type": "http.response.start", "status": status, "headers": headers})

    async def say(self, body: bytes, *, more: bool = True) -> None:
        await self.answer({"type": "http.response.body", "body": body, "more_body": more})

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def text(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.text)["error"]
        return error

    @property
    def n_ends(self) -> int:
        bodies = [m for m in self.messages if m["type"] == "http.response.body"]
        return sum(not m.get("more_body", False) for m in bodies)


ERROR = {"message": "m", "type": "BadRequestError", "param": "p", "code": 400}


async def test_stream_passes_unchanged() -> None:
    client = Client()
    await client.start()
    await client.say(b"data: 1\n\n")
    await client.say(b"data: [DONE]\n\n")
    await client.say(b"", more=False)
    assert client.text == b"data: 1\n\ndata: [DONE]\n\n"
    assert (client.status, client.n_ends) == (200, 1)


async def test_start_of_a_stream_waits_for_its_first_event() -> None:
    client = Client()
    await client.start()
    assert client.messages == []


async def test_error_as_first_event_becomes_the_status() -> None:
    client = Client()
    await client.start()
    await client.say(b"data: " + json.dumps({"error": ERROR}).encode() + b"\n\n")
    await client.say(b"data: [DONE]\n\n")
    await client.say(b"", more=False)
    assert (client.status, client.n_ends) == (400, 1)
    assert (client.error["message"], client.error["param"]) == ("m", "p")


async def test_overload_as_first_event_says_when_to_come_back() -> None:
    client = Client()
    await client.start()
    await client.say(b"data: " + json.dumps({"error": ERROR | {"code": 429}}).encode() + b"\n\n")
    assert client.status == 429
    assert (b"retry-after", b"3") in client.messages[0]["headers"]


async def test_error_after_the_first_event_is_one_event_and_the_end() -> None:
    client = Client()
    await client.start()
    await client.say(b"data: 1\n\n")
    await client.say(b"data: " + json.dumps({"error": ERROR}).encode() + b"\n\n")
    await client.say(b"data: [DONE]\n\n")
    await client.say(b"", more=False)
    assert (client.status, client.n_ends) == (200, 1)
    assert client.text.count(b'"error"') == 1
    assert client.text.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("path", "first_line"),
    [
        ("/v1/completions", b"data: {"),
        ("/v1/responses", b"event: error\n"),
        ("/v1/messages", b"event: error\n"),
    ],
)
async def test_front_end_that_raises_mid_stream_ends_it_with_one_event(
    path: str, first_line: bytes
) -> None:
    client = Client(path)
    await client.start()
    await client.say(b"data: 1\n\n")
    await client.answer.fail(RuntimeError("secret"))
    assert client.n_ends == 1
    assert client.text.removeprefix(b"data: 1\n\n").startswith(first_line)
    assert b"secret" not in client.text


async def test_front_end_that_raises_first_is_answered_by_kind() -> None:
    client = Client()
    await client.start()
    raised = RuntimeError("response already started")
    raised.__cause__ = VLLMValidationError("too hot", parameter="temperature")
    await client.answer.fail(raised)
    assert client.status == 400
    assert client.error["param"] == "temperature"


async def test_inner_fault_is_not_shown() -> None:
    client = Client()
    await client.start(b"application/json", 500)
    await client.say(b'{"error": {"message": "list index out of range"}}', more=False)
    assert client.status == 500
    assert "index" not in client.error["message"]


async def test_front_end_that_raises_after_its_answer_is_for_the_log() -> None:
    client = Client()
    await client.start(b"application/json")
    await client.say(b"{}", more=False)
    with pytest.raises(KeyError):
        await client.answer.fail(KeyError("x"))
    assert client.n_ends == 1
