"""The last that every answer passes: it gets its request's id, version, limits and timings."""

import time
from collections.abc import Sequence

from starlette.types import Message, Send

from serve_app.gateway.answer import send_error
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.gateway_metrics import GatewayMetrics
from serve_app.gateway.limit_answers import limit_headers
from serve_app.gateway.meter import Meter
from serve_app.gateway.timing_report import timing_headers
from serve_app.gateway.timings import Timings

REQUEST_ID_HEADER = b"x-request-id"
VERSION_HEADER = b"x-model-version"


class Answered:
    """A `send` for all that this gateway answers.

    Args:
        send: Where it goes.
        request_id: Of the request.
        metrics: Counts answers.
        started_s: When the request arrived, by the monotonic clock.
    """

    def __init__(
        self, send: Send, request_id: str, metrics: GatewayMetrics, started_s: float
    ) -> None:
        self.meter: Meter | None = None
        """Of a request for a model."""
        self.status = 0
        """HTTP; 0 until an answer begins."""
        self._send = send
        self._metrics = metrics
        self._request_id = request_id.encode()
        self._started_s = started_s
        self._has_begun = False

    async def __call__(self, message: Message) -> None:
        """Passes one message on (ASGI)."""
        if message["type"] == "http.response.start":
            self._has_begun = True
            self.status = message["status"]
            self._metrics.answer(self.status)
            headers = [h for h in message["headers"] if h[0].lower() != REQUEST_ID_HEADER]
            headers.append((REQUEST_ID_HEADER, self._request_id))
            if self.meter is None:  # No model was asked, or nobody knows for whom.
                headers += timing_headers(Timings(time.monotonic() - self._started_s))
            else:
                if self.meter.version:
                    headers.append((VERSION_HEADER, self.meter.version.encode()))
                headers += timing_headers(self.meter.read_timings())
                if self.meter.is_limited:
                    headers += await _limit_headers(self.meter)
            message = {**message, "headers": headers}
        await self._send(message)

    async def with_error(self, error: ApiError, path: str) -> None:
        """Answers with an error unless an answer has begun."""
        if not self._has_begun:
            await send_error(self, error, path)


async def _limit_headers(meter: Meter) -> Sequence[tuple[bytes, bytes]]:
    await meter.look()
    return limit_headers(meter.standing) if meter.standing is not None else ()
