"""Traces of requests, for OpenTelemetry."""

from typing import Annotated

from pydantic import AfterValidator, Field

from serve_app.config_section import Section
from serve_app.names import Form


class TracingSettings(Section):
    """Where gateways send spans of requests, over OTLP's gRPC. Takes effect as gateways start.

    A request that says in `traceparent` whether it is sampled is taken at its word.
    """

    endpoint: Annotated[
        str, AfterValidator(Form(r"https?://[^/\s@]+/?", "http://host:port or https://host:port"))
    ]
    """The collector, such as `http://127.0.0.1:4317`. Credentials come from the variable
    `OTEL_EXPORTER_OTLP_HEADERS` of the gateways' environment."""
    sample_ratio: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    """Share of the other requests that is sampled."""
