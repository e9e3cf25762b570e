"""Sends spans to a collector over OTLP's gRPC, in batches, from a thread of its own.

Whoever has a span to send leaves what it is made of and goes on. The thread makes OTLP's own
messages of that, which are C here; OpenTelemetry's spans and their encoder take ten times as long.
Its exporter does the rest: credentials, retries, the channel.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from serve_app import telemetry
from serve_app.gateway.span_form import make_attributes

logger = logging.getLogger(__name__)

MakeSpans = Callable[[], Iterable[Span]]
"""Makes the spans of something that has ended; called later, on the sender's thread."""

_EVERY_S = 1.0
_MOST_WAITING = 2048
"""Traces; of more than that the oldest are dropped, as the collector is away or too slow."""
_MOST_AT_ONCE = 512
_CLOSE_S = 5.0


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's, for spans that are messages of OTLP's already."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, insecure=endpoint.startswith("http://"))
        about = {"service.name": "arriero", "service.version": telemetry.version()}
        self._resource = Resource(attributes=make_attributes(about))
        self._scope = InstrumentationScope(name="arriero.gateway", version=telemetry.version())

    def send(self, spans: list[Any]) -> None:
        """Sends spans; tries again for some seconds where the collector is away."""
        self.export(spans)

    def _translate_data(self, data: Sequence[Any]) -> ExportTraceServiceRequest:
        spans = ScopeSpans(scope=self._scope, spans=data)
        return ExportTraceServiceRequest(
            resource_spans=[ResourceSpans(resource=self._resource, scope_spans=[spans])]
        )


class SpanSender:
    """Takes what spans are made of, from any thread; sends them once a second.

    Args:
        endpoint: The collector's.
    """

    def __init__(self, endpoint: str) -> None:
        self._exporter = _Exporter(endpoint)
        self._waiting: deque[MakeSpans] = deque(maxlen=_MOST_WAITING)
        self._n_dropped = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, make: MakeSpans) -> None:
        """Takes what makes some spans."""
        self._n_dropped += len(self._waiting) == _MOST_WAITING
        self._waiting.append(make)

    def close(self) -> None:
        """Sends what is left. Takes seconds where the collector is away."""
        self._stopping.set()
        self._thread.join(_CLOSE_S)
        self._exporter.shutdown()

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            self._send()
        self._send()

    def _send(self) -> None:
        dropped, self._n_dropped = self._n_dropped, 0
        if dropped:
            logger.warning("The collector is too slow: %d traces were dropped.", dropped)
        while self._waiting:
            makers = [
                self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_AT_ONCE))
            ]
            try:
                self._exporter.send([span for make in makers for span in make()])
            except Exception:  # A thread's edge: the next spans are to leave all the same.
                logger.exception("Traces of %d requests could not be sent.", len(makers))
