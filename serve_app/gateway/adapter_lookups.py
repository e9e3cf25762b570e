"""First look-ups of adapters: a tenant with many waits for itself, and not others for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from serve_app.errors import AdapterAwayError
from serve_app.names import TenantId

_MAX_RESOLVING = 1024
"""Requests of one tenant that may wait for adapters' first look-up: whoever begins with hundreds at
once only waits, and made-up names, of which there is no end, take no more than that."""


@dataclass
class _Queue:
    """Look-ups of one tenant's new adapters, those that run included."""

    places: asyncio.Semaphore
    length: int = 0


class Lookups:
    """Who looks up an adapter for the first time."""

    def __init__(self) -> None:
        self.places = 1
        """Look-ups of one tenant at a time; for tenants that come from now on."""
        self._queues: dict[TenantId, _Queue] = {}

    @contextlib.asynccontextmanager
    async def place_of(self, tenant: TenantId) -> AsyncIterator[None]:
        """Waits for one of a tenant's places, and has it inside.

        Raises:
            AdapterAwayError: Too many of its requests wait already.
        """
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = _Queue(asyncio.Semaphore(self.places))
        if queue.length >= _MAX_RESOLVING:
            raise AdapterAwayError("Too many adapters are being looked up.", 1.0)
        queue.length += 1
        try:
            async with queue.places:
                yield
        finally:
            queue.length -= 1
            if not queue.length:
                self._queues.pop(tenant, None)
