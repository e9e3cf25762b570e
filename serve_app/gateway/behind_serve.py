"""What is different for a gateway whose answers pass through Ray Serve."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.gateway.answered import REQUEST_ID_HEADER


class OneRequestId:
    """Leaves naming the request to Serve, which appends the id that came with it or that it drew.

    Clients join a header that is there twice: the OpenAI SDK's `_request_id` was "a, a". An id of
    ours that differs, as the client's own was not fit for logs, is told beside Serve's.

    Args:
        app: The gateway's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = REQUEST_ID_HEADER.decode()
        serves = (REQUEST_ID_HEADER, Headers(scope=scope).get(name, "").encode("latin-1"))

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [header for header in message["headers"] if header != serves]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_named)
