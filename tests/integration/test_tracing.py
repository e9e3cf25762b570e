"""A request's trace, from its client's span down to the engine, at a real OTLP receiver."""

from pathlib import Path
from typing import Any

import pytest
from opentelemetry.util._once import Once

from serve_app.keys import hash_key
from tests.integration.conftest import make_settings, write_echo, write_vllm
from tests.support.clients import ask, post
from tests.support.otlp import Collector, attributes_of
from tests.support.platform import LocalPlatform

_KEY = "key-of-team-a"
_TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
_SPAN_ID = "00f067aa0ba902b7"
_SECRET = "Zanzibar marmalade"


@pytest.fixture(autouse=True)
def no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one for good; each test here stands for one."""
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER_SET_ONCE", Once())


def send(platform: LocalPlatform, flags: str = "01") -> None:
    headers = {
        "authorization": f"Bearer {_KEY}",
        "traceparent": f"00-{_TRACE_ID}-{_SPAN_ID}-{flags}",
        "x-request-id": f"traced-{flags}",
    }
    body = {"model": "tiny", "messages": ask(_SECRET), "max_tokens": 8}
    assert post(platform.url, "/v1/chat/completions", body, **headers).status_code == 200


def stop_at_a_string(platform: LocalPlatform) -> None:
    """Two requests: one says what the other is to stop at."""
    body = {"model": "tiny", "prompt": "one two three four", "max_tokens": 8}
    headers = {"authorization": f"Bearer {_KEY}"}
    (whole,) = post(platform.url, "/v1/completions", body, **headers).json()["choices"]
    body["stop"] = whole["text"][3:6]
    (cut,) = post(platform.url, "/v1/completions", body, **headers).json()["choices"]
    assert (cut["finish_reason"], cut["text"]) == ("stop", whole["text"][:3])


def make_traced(model: dict[str, Any], endpoint: str, folder: Path) -> Any:
    return make_settings(
        model,
        auth={"kind": "keys"},
        tenants=[
            {
                "id": "a",
                "keys": [{"hash": hash_key(_KEY)}],
                "limits": {"requests_per_min": 1000},
            }
        ],
        tracing={"endpoint": endpoint},
        store={"state_dir": str(folder / "state")},
    )


def check_tree(collector: Collector) -> None:
    """Every span of a request has its place below the client's."""

    def named(name: str) -> list[Any]:
        return [span for span in collector.named(name) if span.trace_id.hex() == _TRACE_ID]

    (root,) = named("POST /v1/chat/completions")
    assert root.parent_span_id.hex() == _SPAN_ID
    own = attributes_of(root)
    assert own["arriero.request_id"] == "traced-01"
    assert (own["arriero.tenant"], own["gen_ai.usage.output_tokens"]) == ("a", 8)
    assert own["http.response.status_code"] == 200
    for name in ("ledger", "router", "engine"):
        (span,) = named(name)
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    (engine,) = named("engine")
    for name in ("prefill", "decode"):
        (span,) = named(name)
        assert span.parent_span_id == engine.span_id
    assert all(_SECRET not in str(span) and _KEY not in str(span) for span in collector.spans)


def test_trace_goes_from_the_client_to_the_engine(tiny_model: Path, tmp_path: Path) -> None:
    with Collector() as collector:
        settings = make_traced(write_echo(tiny_model), collector.endpoint, tmp_path)
        with LocalPlatform(settings, tmp_path) as platform:
            send(platform, "00")  # Its client says that it is not sampled.
            send(platform)
            stop_at_a_string(platform)
        # A platform that stops sends what it has left.
        check_tree(collector)
        # The gateway knows the end of the last one, and no engine has said so.
        assert len(collector.named("llm_request")) == 3


@pytest.mark.slow
def test_vllms_own_span_is_part_of_the_trace(tiny_model: Path, tmp_path: Path) -> None:
    with Collector() as collector:
        settings = make_traced(write_vllm(tiny_model), collector.endpoint, tmp_path)
        with LocalPlatform(settings, tmp_path, engines_in_processes=True) as platform:
            send(platform)
        check_tree(collector)
        (root,) = collector.named("POST /v1/chat/completions")
        (own,) = collector.named("llm_request")
        assert own.trace_id == root.trace_id
        assert own.parent_span_id == root.span_id
        assert attributes_of(own)["gen_ai.usage.completion_tokens"] == 8
