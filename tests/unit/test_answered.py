"""What every answer gets on its way out, whoever gives it."""

import time

from starlette.types import Message

from serve_app.gateway.answered import Answered
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.gateway_metrics import GatewayMetrics
from serve_app.metrics import Metrics
from serve_app.telemetry import RESPONSES


async def test_an_answer_without_a_caller_says_its_id_and_how_long_it_took() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    metrics = Metrics()
    answered = Answered(send, "req-1", GatewayMetrics(metrics), time.monotonic() - 2.0)
    await answered.with_error(ApiError(401, "There is no API key."), "/v1/chat/completions")
    headers = dict(sent[0]["headers"])
    assert (sent[0]["status"], headers[b"x-request-id"]) == (401, b"req-1")
    assert 2000.0 <= float(headers[b"x-arriero-gateway-ms"]) < 60_000.0
    assert b"x-arriero-queue-ms" not in headers
    assert metrics.value(RESPONSES, "401") == 1


async def test_an_answer_that_has_begun_gets_no_second_head() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answered = Answered(send, "req-1", GatewayMetrics(), time.monotonic())
    await answered({"type": "http.response.start", "status": 200, "headers": []})
    await answered.with_error(ApiError(500, "It broke."), "/health")
    assert len(sent) == 1
