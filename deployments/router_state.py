"""What a router leaves to its successor, and the file that holds it.

The file is small and is replaced several times a second, so it is not synced to the disk: it is
for a router that dies, not for a machine that does. Whatever is wrong with it, a router starts.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from serve_app.messages import EngineId, TicketId
from serve_app.names import ModelName
from serve_app.policy.fairness_options import Cost
from serve_app.policy.fairness_ticket import Snapshot

logger = logging.getLogger(__name__)

_STALE_S = 600.0
"""Nobody who waited so long ago still does."""
_SAVE_EVERY_S = 0.1
_SAVE_SHARE = 0.02
"""Of the router's time, at most, that goes into saving: a longer state is saved less often."""


class SavedRun(msgspec.Struct, frozen=True):
    """Where a ticket belongs that has begun."""

    gateway: bytes
    engine_id: EngineId | None
    """None while it waits to go on elsewhere."""
    paid_tokens: int | None = None
    """As `messages.RunningTicket` has it: of one that came from another cell."""


class RouterState(msgspec.Struct, frozen=True):
    """All that gateways and engines cannot tell a new router."""

    cost: Cost
    """What a token costs. Counters in other units mean nothing."""
    queue: Snapshot
    """Without what waits."""
    running: dict[TicketId, SavedRun]


class Keeper(Protocol):
    """Keeps a router's state over its death."""

    def load(self) -> bytes | None:
        """Returns what was saved last; None if there is nothing of use."""

    def save(self, state: bytes) -> None:
        """Replaces what was saved.

        Raises:
            OSError: It could not be written.
        """


class StateFile:
    """A router's state in a file (`Keeper`).

    Args:
        folder: Made if need be.
        domain: Whose router it is.
    """

    def __init__(self, folder: Path, domain: ModelName) -> None:
        self._path = folder / f"{quote(domain, safe='')}.state"

    def load(self) -> bytes | None:
        """Returns what was saved last, unless that was long ago."""
        try:
            if time.time() - self._path.stat().st_mtime > _STALE_S:
                return None
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("The last router's counters cannot be read: %s", error)
            return None

    def save(self, state: bytes) -> None:
        """Replaces the file whole: a reader finds the old one or the new one."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self._path.with_suffix(".draft")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(state)
        draft.rename(self._path)


async def save_regularly(keeper: Keeper, state: Callable[[], RouterState]) -> None:
    """Saves a state whenever it has changed, until cancelled."""
    before, is_failing = b"", False
    while True:
        started_s = time.perf_counter()
        data = msgspec.msgpack.encode(state())
        took_s = time.perf_counter() - started_s
        if data != before:
            is_failing = await _save(keeper, data, is_failing=is_failing)
            before = b"" if is_failing else data
        await asyncio.sleep(max(_SAVE_EVERY_S, took_s / _SAVE_SHARE))


async def _save(keeper: Keeper, data: bytes, *, is_failing: bool) -> bool:
    """Saves a state; returns whether that has failed, and says so the first time."""
    try:
        await asyncio.to_thread(keeper.save, data)
    except OSError as error:
        if not is_failing:
            logger.warning(
                "Tenants' counters cannot be kept (%s): if this router dies, all start anew.", error
            )
        return True
    return False


def read_state(data: bytes | None, cost: Cost) -> RouterState | None:
    """Returns a predecessor's state if a router with these costs can go on from it."""
    if data is None:
        return None
    try:
        state = msgspec.msgpack.decode(data, type=RouterState)
    except msgspec.DecodeError as error:
        logger.warning("The last router's counters are of another version: %s", error)
        return None
    if {saved.ticket for saved in state.queue.tickets} != state.running.keys():
        logger.warning("The last router's counters contradict themselves; all tenants start anew.")
        return None
    if state.cost != cost:
        logger.info("Costs have changed; all tenants start anew.")
        return None
    return state
