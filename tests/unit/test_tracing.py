"""What of a trace is made when, and that it is what OpenTelemetry's own code would send."""

import logging
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode

from serve_app.config_tracing import TracingSettings
from serve_app.gateway import span_sender, tracing
from serve_app.gateway.span_form import from_sdk
from serve_app.gateway.span_sender import MakeSpans, SpanSender
from serve_app.gateway.timings import RequestClock
from serve_app.gateway.tracing import RequestTrace, Tracing
from serve_app.messages import Endpoint, EngineId, EngineTimes, Grant, Standing, TicketId
from serve_app.names import TenantId
from tests.support.otlp import Collector, attributes_of
from tests.support.platform import wait_until

_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
_PATH = "/v1/completions"


class Kept:
    """A sender that keeps what makes spans."""

    def __init__(self, endpoint: str = "") -> None:
        self.makers: list[MakeSpans] = []

    def put(self, make: MakeSpans) -> None:
        self.makers.append(make)

    def spans(self) -> list[Span]:
        return [span for make in self.makers for span in make()]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    sender = Kept()
    monkeypatch.setattr(tracing, "SpanSender", lambda _: sender)
    monkeypatch.setattr(trace, "set_tracer_provider", lambda _: None)
    return sender


def make_tracing(sample_ratio: float) -> Tracing:
    settings = {"endpoint": "http://127.0.0.1:1", "sample_ratio": sample_ratio}
    return Tracing(TracingSettings.model_validate(settings))


def end(request: RequestTrace, status: int = 200) -> None:
    """A request that an engine had, of which it had waited a while for its adapter."""
    clock = RequestClock(10.0)
    ticket = clock.send(10.1)
    endpoint = Endpoint("tcp://127.0.0.1:1", b"")
    standing = Standing(TenantId(""), 0, 0, 0)
    grant = Grant(TicketId("t"), EngineId("e-1"), endpoint, standing, queue_s=0.1)
    ticket.grant(grant, 10.3)
    ticket.hear(EngineTimes(adapter_load_s=0.2, queue_s=0.1), 11.0)
    clock.end(12.0)
    request.end(clock, status, None)


def test_who_is_not_sampled_leaves_a_number_and_nothing_else(kept: Kept) -> None:
    request = make_tracing(0.0).begin(_PATH, {})
    end(request)
    assert len(request.id) == 32
    assert request.headers == {}
    assert kept.makers == []


def test_spans_are_made_when_they_are_sent(kept: Kept) -> None:
    request = make_tracing(1.0).begin(_PATH, {})
    assert kept.makers == []
    end(request, status=503)
    root, *below = kept.spans()
    assert (root.name, root.kind) == (f"POST {_PATH}", Span.SPAN_KIND_SERVER)
    assert root.trace_id.hex() == request.id
    assert request.headers == {"traceparent": f"00-{request.id}-{root.span_id.hex()}-01"}
    assert attributes_of(root)["http.response.status_code"] == 503
    assert root.status.code == 2
    assert root.end_time_unix_nano - root.start_time_unix_nano == pytest.approx(2e9)
    by_name = {span.name: span for span in below}
    assert set(by_name) == {"router", "engine", "adapter load", "queue", "prefill", "decode"}
    assert by_name["engine"].parent_span_id == root.span_id
    assert by_name["decode"].parent_span_id == by_name["engine"].span_id
    assert {span.trace_id for span in below} == {root.trace_id}
    assert len({span.span_id for span in (root, *below)}) == 7
    assert {span.flags for span in below} == {0x100}


@pytest.mark.parametrize(("ratio", "flags", "is_sampled"), [(0.0, "01", True), (1.0, "00", False)])
def test_a_clients_word_on_sampling_holds(
    ratio: float, flags: str, is_sampled: bool, kept: Kept
) -> None:
    headers = {"traceparent": f"{_PARENT}-{flags}", "tracestate": "vendor=x"}
    request = make_tracing(ratio).begin(_PATH, headers)
    end(request)
    assert request.id == _PARENT.split("-")[1]
    assert bool(kept.makers) == is_sampled
    if is_sampled:
        root, *_ = kept.spans()
        assert root.parent_span_id.hex() == _PARENT.split("-")[2]
        assert root.trace_state == request.headers["tracestate"] == "vendor=x"
        assert root.flags == 0x300


@pytest.mark.parametrize("nonsense", ["", "00-zz-yy-01", f"ff-{'a' * 32}-{'b' * 16}-01"])
def test_a_trace_that_makes_no_sense_begins_anew(nonsense: str, kept: Kept) -> None:
    request = make_tracing(1.0).begin(_PATH, {"traceparent": nonsense})
    end(request)
    assert kept.spans()[0].parent_span_id == b""


def test_as_many_are_sampled_as_by_opentelemetrys_rule(kept: Kept) -> None:
    ours, theirs = make_tracing(0.25), TraceIdRatioBased(0.25)
    sampled = 0
    for _ in range(2000):
        request = ours.begin(_PATH, {})
        said = theirs.should_sample(None, int(request.id, 16), "")
        assert bool(request.headers) == (said.decision is Decision.RECORD_AND_SAMPLE)
        sampled += bool(request.headers)
    assert 350 < sampled < 650


def make_sdk_spans() -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(ParentBased(TraceIdRatioBased(1.0)), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("vllm")
    carrier = {"traceparent": f"{_PARENT}-01", "tracestate": "vendor=x"}
    below = tracing._W3C.extract(carrier)
    for context, kind in ((below, SpanKind.SERVER), (None, SpanKind.CLIENT)):
        span = tracer.start_span("llm_request", context, kind, start_time=5)
        span.set_attributes({"text": "a", "whole": 3, "part": 0.5, "is": True})
        span.end(9)
    failed = tracer.start_span("failed", start_time=1)
    failed.set_status(Status(StatusCode.ERROR))
    failed.end(2)
    return list(exporter.get_finished_spans())


def test_spans_of_others_are_sent_as_opentelemetry_would() -> None:
    for span in make_sdk_spans():
        (resource,) = encode_spans([span]).resource_spans
        (expected,) = resource.scope_spans[0].spans
        assert from_sdk(span) == expected


def test_sender_sends_to_a_collector_what_is_left() -> None:
    first, second, _ = make_sdk_spans()
    with Collector() as collector:
        sender = SpanSender(collector.endpoint)
        sender.put(lambda: [from_sdk(first)])
        sender.put(lambda: [from_sdk(second)])
        sender.close()
        assert collector.spans == [from_sdk(first), from_sdk(second)]


def test_sender_goes_on_after_a_span_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(span_sender, "_Exporter", lambda _: FakeExporter(sent))
    monkeypatch.setattr(span_sender, "_EVERY_S", 0.01)
    with caplog.at_level(logging.ERROR, span_sender.logger.name):
        sender = SpanSender("http://127.0.0.1:1")
        sender.put(lambda: [Span(name=1)])  # type: ignore[arg-type]  # what goes wrong
        wait_until(lambda: "could not be sent" in caplog.text, 5.0, "logged")
    sender.put(lambda: [Span(name="next")])
    sender.close()
    assert [span.name for span in sent] == ["next"]


def test_sender_drops_the_oldest_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(span_sender, "_Exporter", lambda _: FakeExporter(sent))
    monkeypatch.setattr(span_sender, "_EVERY_S", 3600.0)
    sender = SpanSender("http://127.0.0.1:1")
    for i in range(2050):
        sender.put(lambda i=i: [i])  # type: ignore[misc]  # mypy cannot infer a lambda with a default
    with caplog.at_level(logging.WARNING, span_sender.logger.name):
        sender.close()
    assert sent == list(range(2, 2050))
    assert "2 traces were dropped" in caplog.text


class FakeExporter:
    def __init__(self, sent: list[Any]) -> None:
        self._sent = sent

    def send(self, spans: list[Any]) -> None:
        assert len(spans) <= 512
        self._sent += spans

    def shutdown(self) -> None:
        pass
