"""Keeps what was asked and answered, for tenants that want it; nobody else's texts come here."""

from starlette.types import Message, Send

from serve_app.usage import Texts


class Transcript:
    """A `send` that keeps the beginning of an answer.

    Args:
        send: Where the answer goes.
        path: The request's.
        body: The request's.
        most_bytes: What is kept of either.
    """

    def __init__(self, send: Send, path: str, body: bytes, most_bytes: int) -> None:
        self._send = send
        self._path = path
        self._body = body
        self._most_bytes = most_bytes
        self._answer = bytearray()
        self._is_whole = len(body) <= most_bytes

    async def __call__(self, message: Message) -> None:
        """Passes one message on (ASGI)."""
        body = message.get("body", b"")
        if body:
            room = self._most_bytes - len(self._answer)
            self._is_whole = self._is_whole and len(body) <= room
            self._answer += body[:room]
        await self._send(message)

    def texts(self) -> Texts:
        """Returns what was kept."""
        return Texts(
            path=self._path,
            request=_read(self._body[: self._most_bytes]),
            answer=_read(bytes(self._answer)),
            is_whole=self._is_whole,
        )


def _read(text: bytes) -> str:
    """PostgreSQL has no NUL, and a character may have been cut in half."""
    return text.decode("utf-8", "replace").replace("\x00", "")
