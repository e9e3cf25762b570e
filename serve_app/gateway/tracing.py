"""Traces requests for a collector of OpenTelemetry's.

Of a request that is sampled all spans are made when it has ended, of its timings, on another
thread; until then there are two numbers, by which vLLM's own span finds its place below it. Of one
that is not sampled there is its trace's number, for its log line.
"""

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app import telemetry
from serve_app.config_tracing import TracingSettings
from serve_app.gateway.span_form import SERVER, Place, from_sdk, make_span
from serve_app.gateway.span_sender import SpanSender
from serve_app.gateway.timings import RequestClock
from serve_app.gateway.trace_plan import Span, Value, plan_spans
from serve_app.usage import UsageRecord

_W3C = TraceContextTextMapPropagator()
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class _Ended:
    """A request that has ended, as its trace shows it."""

    name: str
    clock: RequestClock
    attributes: Mapping[str, Value]
    is_error: bool


class RequestTrace:
    """The trace of one request.

    Args:
        sender: Takes its spans; None where it is not sampled.
        place: Where in which trace the request belongs.
        path: The request's.
    """

    __slots__ = ("_path", "_place", "_sender", "_span_id")

    def __init__(self, sender: SpanSender | None, place: Place, path: str) -> None:
        self._sender = sender
        self._place = place
        self._path = path
        self._span_id = _draw_id(64) if sender is not None else 0

    @property
    def id(self) -> str:
        """By which people find it."""
        return f"{self._place.trace_id:032x}"

    @property
    def headers(self) -> dict[str, str]:
        """What makes another's spans children of the request's, if there is to be one."""
        if self._sender is None:
            return {}
        headers = {"traceparent": f"00-{self.id}-{self._span_id:016x}-01"}
        return headers | {"tracestate": self._place.state} if self._place.state else headers

    def end(self, clock: RequestClock, status: int, record: UsageRecord | None) -> None:
        """The request has ended.

        Args:
            clock: Where its time went.
            status: HTTP; 0 where its client left before there was one.
            record: What is recorded of it, if anything is.
        """
        if self._sender is None:
            return
        clock.end(clock.ended_s if clock.ended_s is not None else time.monotonic())
        has_failed = record is not None and record.outcome == "failed"
        ended = _Ended(
            f"POST {self._path}",
            clock,
            self._describe(status, record),
            status >= _SERVER_ERROR or has_failed,
        )
        offset_ns = time.time_ns() - time.monotonic_ns()
        self._sender.put(lambda: _make_spans(ended, self._place, self._span_id, offset_ns))

    def _describe(self, status: int, record: UsageRecord | None) -> dict[str, Value]:
        attributes: dict[str, Value] = {
            "http.request.method": "POST",
            "url.path": self._path,
            "http.response.status_code": status,
            "arriero.request_id": telemetry.request_id.get(),
        }
        if record is not None:
            attributes |= _describe(record)
        return attributes


class Tracing:
    """A gateway's traces.

    Args:
        settings: Where they go, and how many.
    """

    def __init__(self, settings: TracingSettings) -> None:
        self._sender = SpanSender(settings.endpoint)
        self._bound = TraceIdRatioBased.get_bound_for_rate(settings.sample_ratio)
        # vLLM's own spans, of how its front end saw a request, are made by whom this points to.
        sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio))
        provider = TracerProvider(sampler, shutdown_on_exit=False)
        provider.add_span_processor(_Forwarding(self._sender))
        trace.set_tracer_provider(provider)

    def begin(self, path: str, headers: Mapping[str, str]) -> RequestTrace:
        """Begins a request's trace, or goes on with its client's.

        Args:
            path: The request's.
            headers: Of the request; `traceparent` names its client's span.
        """
        client = _read_client(headers)
        if client is None:
            # As OpenTelemetry's sampler decides: by the lower half of the trace's number.
            trace_id = _draw_id(128)
            is_sampled = trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
            return RequestTrace(self._sender if is_sampled else None, Place(trace_id), path)
        state = client.trace_state.to_header()
        place = Place(client.trace_id, client.span_id, state, is_parent_remote=True)
        return RequestTrace(self._sender if client.trace_flags.sampled else None, place, path)

    def close(self) -> None:
        """Sends what is left. Takes seconds where the collector is away."""
        self._sender.close()


class _Forwarding(SpanProcessor):
    """Sends what others make with OpenTelemetry's SDK.

    Args:
        sender: Takes it.
    """

    def __init__(self, sender: SpanSender) -> None:
        self._sender = sender

    def on_end(self, span: ReadableSpan) -> None:
        """Takes a span that has ended."""
        if span.context is not None and span.context.trace_flags.sampled:
            self._sender.put(lambda: [from_sdk(span)])


def _read_client(headers: Mapping[str, str]) -> trace.SpanContext | None:
    parent = headers.get("traceparent")
    if parent is None:
        return None
    carrier = {"traceparent": parent}
    if "tracestate" in headers:
        carrier["tracestate"] = headers["tracestate"]
    found = trace.get_current_span(_W3C.extract(carrier, Context())).get_span_context()
    return found if found.is_valid else None


def _draw_id(n_bits: int) -> int:
    """Returns a number that nobody else has; 0 is nobody's."""
    return random.getrandbits(n_bits) or 1


def _make_spans(
    ended: _Ended, place: Place, span_id: int, offset_ns: int
) -> Iterator[trace_pb2.Span]:
    clock = ended.clock
    assert clock.ended_s is not None, "end comes first"
    start_ns, end_ns = (int(at_s * 1e9) + offset_ns for at_s in (clock.started_s, clock.ended_s))
    attributes, is_error = ended.attributes, ended.is_error
    yield make_span(
        place, span_id, ended.name, start_ns, end_ns, attributes, SERVER, is_error=is_error
    )
    below = place._replace(parent_id=span_id, is_parent_remote=False)
    yield from _make_below(plan_spans(clock), below, offset_ns)


def _make_below(spans: Iterable[Span], place: Place, offset_ns: int) -> Iterator[trace_pb2.Span]:
    for each in spans:
        span_id = _draw_id(64)
        start_ns, end_ns = (int(at_s * 1e9) + offset_ns for at_s in (each.start_s, each.end_s))
        yield make_span(place, span_id, each.name, start_ns, end_ns, each.attributes)
        yield from _make_below(each.children, place._replace(parent_id=span_id), offset_ns)


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
