"""What a front end sees of a request's trace: ours where it is sampled, else none."""

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.gateway.inner_scope import inner_scope
from serve_app.gateway.meter import current_meter

THEIRS = f"00-{'a' * 32}-{'b' * 16}-01"
OURS = f"00-{'a' * 32}-{'c' * 16}-01"


@pytest.mark.parametrize(
    ("trace", "seen"),
    [
        (None, THEIRS),
        (SimpleNamespace(headers={"traceparent": OURS}), OURS),
        (SimpleNamespace(headers={}), None),
    ],
    ids=["nobody traces", "sampled", "not sampled"],
)
def test_trace_that_goes_on_is_the_gateways(trace: Any, seen: str | None) -> None:
    scope: dict[str, Any] = {
        "headers": [(b"traceparent", THEIRS.encode()), (b"accept", b"*/*")],
        "app": "the gateway's",
    }
    token = current_meter.set(SimpleNamespace(trace=trace))  # type: ignore[arg-type]  # all it reads
    try:
        inner = inner_scope(scope)
    finally:
        current_meter.reset(token)
    headers = dict(inner["headers"])
    assert headers.get(b"traceparent") == (None if seen is None else seen.encode())
    assert headers[b"accept"] == b"*/*"
    assert "app" not in inner
