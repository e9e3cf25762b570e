"""Spans in OTLP's own form."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

INTERNAL = trace_pb2.Span.SPAN_KIND_INTERNAL
SERVER = trace_pb2.Span.SPAN_KIND_SERVER

_PARENT_IS_HERE = 0x100
_PARENT_IS_REMOTE = 0x300
_FAILED = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR)
_UNSAID = trace_pb2.Status()
_KINDS = {
    SpanKind.INTERNAL: INTERNAL,
    SpanKind.SERVER: SERVER,
    SpanKind.CLIENT: trace_pb2.Span.SPAN_KIND_CLIENT,
    SpanKind.PRODUCER: trace_pb2.Span.SPAN_KIND_PRODUCER,
    SpanKind.CONSUMER: trace_pb2.Span.SPAN_KIND_CONSUMER,
}


class Place(NamedTuple):
    """Where in a trace a span belongs.

    Attributes:
        trace_id: Of the trace.
        parent_id: The span above; 0 is none.
        state: W3C's `tracestate`.
        is_parent_remote: Whether that span is another process's.
    """

    trace_id: int
    parent_id: int = 0
    state: str = ""
    is_parent_remote: bool = False


def make_span(
    place: Place,
    span_id: int,
    name: str,
    start_ns: int,
    end_ns: int,
    attributes: Mapping[str, Any],
    kind: Any = INTERNAL,
    *,
    is_error: bool = False,
) -> trace_pb2.Span:
    """Returns a span; times are nanoseconds since 1970."""
    return trace_pb2.Span(
        trace_id=place.trace_id.to_bytes(16),
        span_id=span_id.to_bytes(8),
        parent_span_id=place.parent_id.to_bytes(8) if place.parent_id else b"",
        trace_state=place.state,
        name=name,
        kind=kind,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=end_ns,
        attributes=make_attributes(attributes),
        status=_FAILED if is_error else _UNSAID,
        flags=_PARENT_IS_REMOTE if place.is_parent_remote else _PARENT_IS_HERE,
    )


def make_attributes(attributes: Mapping[str, Any]) -> list[KeyValue]:
    """Returns attributes; what is neither text nor number is written as text."""
    return [KeyValue(key=key, value=_value(value)) for key, value in attributes.items()]


def _value(value: object) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(string_value=str(value))


def from_sdk(span: ReadableSpan) -> trace_pb2.Span:
    """Returns a span that another package has made with OpenTelemetry's SDK."""
    own, parent = span.context, span.parent
    assert isinstance(own, SpanContext), "spans of the SDK have a context"
    place = Place(
        own.trace_id,
        parent.span_id if parent is not None else 0,
        own.trace_state.to_header(),
        parent is not None and parent.is_remote,
    )
    start_ns = span.start_time or 0
    return make_span(
        place,
        own.span_id,
        span.name,
        start_ns,
        span.end_time or start_ns,
        span.attributes or {},
        _KINDS[span.kind],
        is_error=span.status.status_code is StatusCode.ERROR,
    )
