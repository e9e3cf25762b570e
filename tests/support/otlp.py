"""A collector of OpenTelemetry's in this process: the real protocol over real gRPC."""

import threading
from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services


class Collector(services.TraceServiceServicer):
    """Takes spans; starts with `with`, at `endpoint`."""

    def __init__(self) -> None:
        self._spans: list[Any] = []
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
        services.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]  # theirs
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"http://127.0.0.1:{port}"

    def __enter__(self) -> "Collector":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait(5.0)

    def Export(self, request: Any, context: object) -> Any:  # noqa: N802 - the protocol's name
        """Takes a batch of spans."""
        with self._lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self._spans += scope.spans
        return messages.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Any]:
        """What has come so far."""
        with self._lock:
            return list(self._spans)

    def named(self, name: str) -> list[Any]:
        """Those of a name."""
        return [span for span in self.spans if span.name == name]


def attributes_of(span: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""
    values = {each.key: each.value for each in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}
