"""A collector of OpenTelemetry's in a process of its own: takes spans, keeps none, counts them."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

from tests.support.otlp import Collector


@dataclass(frozen=True)
class SpanSink:
    """Where spans go.

    Attributes:
        endpoint: As `tracing.endpoint` has it.
    """

    endpoint: str
    _pipe: Connection

    def n_spans(self) -> int:
        """Returns how many have come."""
        self._pipe.send(None)
        return int(self._pipe.recv())


@contextmanager
def taking_spans() -> Iterator[SpanSink]:
    """Starts a collector; ends it on the way out."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield SpanSink(ours.recv(), ours)
    finally:
        process.terminate()
        process.join()


class _Counting(Collector):
    n_spans = 0

    def Export(self, request: Any, context: object) -> Any:  # noqa: N802 - the protocol's name
        """Counts a batch of spans."""
        self.n_spans += sum(
            len(scope.spans) for each in request.resource_spans for scope in each.scope_spans
        )
        return messages.ExportTraceServiceResponse()


def _serve(pipe: Connection) -> None:
    collector = _Counting()
    with collector:
        pipe.send(collector.endpoint)
        while True:
            pipe.recv()
            pipe.send(collector.n_spans)
