"""Passes a front end's answer on to the client, and turns whatever went wrong into our form.

A stream's status is only sent with its first event. So a request that fails before its first token
(a wrong parameter, a full queue) gets the status it deserves, streaming or not. After that an error
is one event and the end of the stream.
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Message, Send
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from serve_app import telemetry
from serve_app.gateway.error_body import ApiError, from_vllm, render
from serve_app.usage import Outcome

logger = logging.getLogger(__name__)

_ERROR_EVENT = b'data: {"error":'
_DONE_EVENT = b"data: [DONE]\n\n"


class FrontEndAnswer:
    """A `send` for a front end (ASGI).

    Args:
        send: Where the answer goes.
        path: The request's path; decides the form of errors.
        retry_after_s: What clients are told when an error is worth another try.
        find_cause: Says why the request was refused, where that is known better than the front end
            can say it; None where it is not.
    """

    def __init__(
        self,
        send: Send,
        path: str,
        retry_after_s: float,
        find_cause: Callable[[], ApiError | None] = lambda: None,
    ) -> None:
        self._send = send
        self._find_cause = find_cause
        self._path = path
        self._retry_after_s = retry_after_s
        self._held: Message | None = None
        """The start of an answer, until it is known whether it is an error after all."""
        self._is_stream = False
        self._error_body = b""
        self._has_begun = False
        self._has_ended = False
        self._has_failed = False
        self.status = 0
        """The answer's HTTP status; 0 until it begins."""

    @property
    def outcome(self) -> Outcome:
        """How the request ended, once nothing more can come."""
        if self._has_failed:
            return "failed"
        return "finished" if self._has_ended else "cancelled"

    async def __call__(self, message: Message) -> None:
        """Takes one message of the answer."""
        if self._has_ended:
            return
        if message["type"] == "http.response.start":
            self._held = message
            self._is_stream = is_event_stream(message)
        elif self._held is not None and self._held["status"] >= 400:
            await self._collect_error(self._held["status"], message)
        elif message.get("body", b"").startswith(_ERROR_EVENT):
            await self.fail_with(self._read_error_event(message["body"]))
        elif message.get("body") or not message.get("more_body", False):
            await self._pass_on(message)

    async def fail(self, error: Exception) -> None:
        """Ends the answer because the front end raised.

        Raises:
            Exception: The same, when the answer was complete already.
        """
        if self._has_ended:
            raise error
        # Starlette's words for an error that its handlers could not answer any more.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        body = create_error_response(cause if isinstance(cause, Exception) else error)
        answer = self._from_vllm(int(body.error.code), body.model_dump_json().encode())
        if answer.status == 500 and self._find_cause() is None:
            logger.error("Request %s failed.", telemetry.request_id.get(), exc_info=error)
        await self.fail_with(answer)

    async def fail_with(self, error: ApiError) -> None:
        """Ends the answer with an error: its status if there is none yet, else an event."""
        if self._has_ended:
            return
        self._has_ended = self._has_failed = True
        error = self._find_cause() or error
        if not self._has_begun:
            self.status = error.status
            await send_error(self._send, error, self._path)
            return
        payload = render_event(error, self._path) if self._is_stream else b""
        await self._send({"type": "http.response.body", "body": payload, "more_body": False})

    async def _collect_error(self, status: int, message: Message) -> None:
        self._error_body += message.get("body", b"")
        if not message.get("more_body", False):
            await self.fail_with(self._from_vllm(status, self._error_body))

    def _read_error_event(self, event: bytes) -> ApiError:
        data = event.removeprefix(b"data: ").partition(b"\n")[0]
        code = msgspec.json.decode(data)["error"].get("code")
        return self._from_vllm(code if isinstance(code, int) else 500, data)

    def _from_vllm(self, status: int, body: bytes) -> ApiError:
        error = from_vllm(status, body, self._retry_after_s)
        # What broke inside is for the log.
        return internal_error() if error.status >= 500 and error.status != 503 else error

    async def _pass_on(self, message: Message) -> None:
        if self._held is not None:
            start, self._held = self._held, None
            self._has_begun = True
            self.status = start["status"]
            await self._send(start)
        self._has_ended = not message.get("more_body", False)
        await self._send(message)


def internal_error() -> ApiError:
    """What a client hears of a fault of ours."""
    return ApiError(500, f"Something broke here. The request's id is {telemetry.request_id.get()}.")


async def send_error(send: Send, error: ApiError, path: str) -> None:
    """Answers with an error."""
    payload, headers = render(error, path)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})


def render_event(error: ApiError, path: str) -> bytes:
    """Returns the last events of a stream that failed, in the form of its endpoint."""
    payload, _ = render(error, path)
    if path == "/v1/responses":
        # OpenAI's error event has its fields at the top, and `type` names the event.
        fields: dict[str, Any] = msgspec.json.decode(payload)["error"]
        event = fields | {"type": "error", "sequence_number": 0}
        return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
    if path.startswith("/v1/messages"):
        return b"event: error\ndata: " + payload + b"\n\n"
    return b"data: " + payload + b"\n\n" + _DONE_EVENT


def is_event_stream(start: Message) -> bool:
    """Whether an answer that starts so is a stream of events."""
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start["headers"]
    )
