"""What one model's engines do with adapters: how many at once, how large, how long to wait."""

from typing import Annotated, Literal

from pydantic import Field

from serve_app.config_section import Seconds, Section

Count = Annotated[int, Field(ge=1, le=65_536)]


class LoraSettings(Section):
    """LoRA adapters on a model's engines. An empty section, `{}`, takes every default.

    Memory for each slot is taken when the engine starts, at `max_rank`, whatever adapters come.
    """

    max_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 64
    """Greatest rank of an adapter."""
    slots: Count | None = None
    """Different adapters in one batch. None means one for each running request, or as many as
    a tenth of the device's memory holds, at least 4."""
    in_memory: Count | None = None
    """Adapters that one engine keeps in the machine's memory, those in slots included. None
    means four for each slot, or as many as a tenth of that memory holds. At least two more than
    slots, as the next one has to come while those are in use."""
    floor: Annotated[int, Field(ge=0, le=65_536)] = 2
    """Adapters in memory that other tenants' adapters leave to each tenant."""
    load_timeout_s: Seconds = 180.0
    """Seconds after which a request fails whose adapter is still not loaded."""
