"""One adapter as an engine's host memory knows it."""

import asyncio
import math
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.messages import AdapterRef
from serve_app.names import TenantId
from serve_app.policy.adapter_tier import KEPT_AHEAD_S, Held

_HALF_LIFE_S = 300.0
"""After which an adapter's use counts half when it is decided which one leaves."""


@dataclass(eq=False)
class Adapter:
    """One that is in host memory or on its way there."""

    ref: AdapterRef
    tenant: TenantId
    requests: set[str] = field(default_factory=set)
    """That wait for it or use it."""
    folder: Path | None = None
    """On disk, while it is held there."""
    is_held: bool = False
    """Whether it is in host memory, for requests to use."""
    takes_room: bool = False
    """The same, or it is being taken in."""
    is_unwanted: bool = False
    loading: asyncio.Task[None] | None = None
    load_s: float = 0.0
    """What it took to read it and to take it in, without what it waited for others."""
    uses: float = 0.0
    used_s: float = 0.0
    ahead_until_s: float = -math.inf
    """Until when it is kept for a request that was announced."""

    def announce(self, now_s: float) -> None:
        """Keeps it for a request that is to come."""
        self.used_s = max(self.used_s, now_s)
        self.ahead_until_s = now_s + KEPT_AHEAD_S

    def note_use(self, now_s: float) -> None:
        """Counts one request."""
        self.uses = 1.0 + self.uses_at(now_s)
        self.used_s = now_s
        self.ahead_until_s = -math.inf

    def view(self, now_s: float) -> Held:
        """Returns it as it is seen when one has to leave."""
        return Held(
            self.ref.id,
            self.tenant,
            len(self.requests),
            self.uses_at(now_s),
            self.load_s,
            self.used_s,
            is_ahead=now_s < self.ahead_until_s,
        )

    def uses_at(self, now_s: float) -> float:
        """How often it was asked for, older times counting less."""
        return float(self.uses * 0.5 ** ((now_s - self.used_s) / _HALF_LIFE_S))
