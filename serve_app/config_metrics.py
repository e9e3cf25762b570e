"""Settings of metrics."""

from typing import Annotated

from pydantic import Field

from serve_app.config_section import Section


class MetricsSettings(Section):
    """What every process shows to Prometheus. Takes effect when a process starts."""

    enabled: bool = True
    """Whether there are any. Without them there are no dashboards and no alerts."""
    max_tenants: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Tenants that a process shows each under its own name, the first it meets. All others share
    the name `(other)`, so that a crowd of tenants does not become a crowd of series."""
    max_adapters: Annotated[int, Field(ge=0, le=10_000)] = 100
    """The same for adapters."""
