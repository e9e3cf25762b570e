"""What is kept of each request, and for how long."""

from typing import Annotated

from pydantic import Field

from serve_app.config_section import Section

Days = Annotated[int, Field(ge=1, le=36_500)]


class RecordsSettings(Section):
    """One row a request: who, what, how long, how it ended. Sums of usage by day stay for good.

    Prompts and answers are kept of tenants with `keeps_texts` only.
    """

    keep_days: Days | None = 90
    """Days after which a request's row is deleted. None means never."""
    keep_texts_days: Days = 7
    """Days after which prompts and answers are deleted."""
    max_text_bytes: Annotated[int, Field(ge=256, le=65_536)] = 65_536
    """Bytes kept of a request's body, and of its answer. What is longer is cut off, and such a
    request cannot be replayed."""
