"""How many engines a model has as demand changes."""

from typing import Annotated

from pydantic import Field

from serve_app.config_section import Seconds, Section

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class ScalingSettings(Section):
    """When engines are added and taken away, between `replicas.min` and `replicas.max`.

    Looked at only where the two differ. A change takes effect at once and restarts nothing.
    """

    load: Share = 0.5
    """How full one engine alone is to be, by batch, KV cache and pace; several share their room and
    are filled further, as the root of the work has it: 0.5 makes 0.7 of four and 0.78 of eight.
    Less is dearer and has more room for what comes suddenly. It gives way by itself while first
    tokens come late."""
    ttft_target_s: Seconds = 2.0
    """Seconds in which a first token is to come."""
    ttft_attainment: Share = 0.99
    """Part of the first tokens that are to come in that time."""
    scale_down_after_s: Seconds = 60.0
    """Seconds that fewer engines must have been enough before one is stopped; not less than three
    quarters of what an engine takes to start."""
    sleep_after_s: Seconds = 600.0
    """Seconds without a request after which the last engine stops, where `replicas.min` is 0."""
    wake_timeout_s: Seconds = 900.0
    """Seconds that requests wait for a sleeping model to wake. Then they are refused with 503."""
