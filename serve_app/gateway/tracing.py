"""Sends traces of requests to a collector of OpenTelemetry's.

A request's own span begins when it arrives, so that vLLM's can be its children; all others are made
of its timings when it has ended. Where a request is not sampled that is all there is to do.
"""

import time
from collections.abc import Iterable, Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app import telemetry
from serve_app.config_tracing import TracingSettings
from serve_app.gateway.timings import RequestClock
from serve_app.gateway.trace_plan import Span, Value, plan_spans
from serve_app.usage import UsageRecord

_W3C = TraceContextTextMapPropagator()
_SERVER_ERROR = 500


class RequestTrace:
    """The trace of one request.

    Args:
        tracer: Makes spans.
        span: The request's own.
        offset_ns: From the monotonic clock to the time of day.
    """

    def __init__(self, tracer: trace.Tracer, span: trace.Span, offset_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._offset_ns = offset_ns

    @property
    def id(self) -> str:
        """By which people find it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def headers(self) -> dict[str, str]:
        """What makes another's spans children of the request's; nothing where there will be none.

        It goes to the engine, and comes back with each token.
        """
        carrier: dict[str, str] = {}
        if not self._span.is_recording():
            return carrier
        _W3C.inject(carrier, trace.set_span_in_context(self._span))
        return carrier

    def end(self, clock: RequestClock, status: int, record: UsageRecord | None) -> None:
        """The request has ended.

        Args:
            clock: Where its time went.
            status: HTTP; 0 where its client left before there was one.
            record: What is recorded of it, if anything is.
        """
        ended_s = clock.ended_s if clock.ended_s is not None else time.monotonic()
        clock.end(ended_s)
        if self._span.is_recording():
            self._span.set_attribute("http.response.status_code", status)
            if record is not None:
                self._span.set_attributes(_describe(record))
            if status >= _SERVER_ERROR or (record is not None and record.outcome == "failed"):
                self._span.set_status(Status(StatusCode.ERROR))
            self._write(plan_spans(clock), trace.set_span_in_context(self._span))
        self._span.end(self._at_ns(ended_s))

    def _write(self, spans: Iterable[Span], parent: Context) -> None:
        for each in spans:
            span = self._tracer.start_span(
                each.name,
                parent,
                attributes=dict(each.attributes),
                start_time=self._at_ns(each.start_s),
            )
            self._write(each.children, trace.set_span_in_context(span))
            span.end(self._at_ns(each.end_s))

    def _at_ns(self, at_s: float) -> int:
        return int(at_s * 1e9) + self._offset_ns


class Tracing:
    """A gateway's traces.

    Args:
        settings: Where they go, and how many.
    """

    def __init__(self, settings: TracingSettings) -> None:
        resource = Resource.create(
            {"service.name": "arriero", "service.version": telemetry.version()}
        )
        sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio))
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(
            settings.endpoint, insecure=settings.endpoint.startswith("http://")
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("arriero.gateway", telemetry.version())
        # vLLM's own spans, of how its front end saw a request, go where this points.
        trace.set_tracer_provider(self._provider)

    def begin(self, path: str, headers: Mapping[str, str], started_s: float) -> RequestTrace:
        """Begins a request's trace, or goes on with its client's.

        Args:
            path: The request's.
            headers: Of the request; `traceparent` names its client's span.
            started_s: When it arrived, by the monotonic clock.
        """
        offset_ns = time.time_ns() - time.monotonic_ns()
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            f"POST {path}",
            _W3C.extract(carrier, Context()),
            SpanKind.SERVER,
            {
                "http.request.method": "POST",
                "url.path": path,
                "arriero.request_id": telemetry.request_id.get(),
            },
            start_time=int(started_s * 1e9) + offset_ns,
        )
        return RequestTrace(self._tracer, span, offset_ns)

    def close(self) -> None:
        """Sends what is left. Takes seconds where the collector is away."""
        self._provider.shutdown()


def _describe(record: UsageRecord) -> dict[str, Value]:
    return {
        "arriero.tenant": record.tenant_id,
        "arriero.adapter": record.adapter,
        "arriero.outcome": record.outcome,
        "arriero.migrations": record.migrations,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
    }
