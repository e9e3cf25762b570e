"""Brings adapters to this node's disk, for one base model of one process.

    path = await store.ensure(ref)     the adapter's files, checked, in the form that engines load
    store.release(ref)                 they are not needed any more

Checksums of what is on disk already are compared by who reads it (`deployments.adapter_reading`).

All of one process who want the same wait for one fetch. Failures are remembered for a while
(`serve_app.policy.adapter_retry`), so that a bad adapter is never tried for ever.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from deployments.adapter_cache import AdapterCache, Hold
from deployments.adapter_jobs import (
    AdapterFacts,
    Away,
    Bring,
    Brought,
    Look,
    Outcome,
    Refused,
    Seen,
    key_of,
)
from deployments.adapter_reading import read_facts
from deployments.adapter_workers import AdapterWorkers, cache_folder_of
from serve_app.config_adapters import AdapterCacheSettings
from serve_app.errors import AdapterAwayError, AdapterRefusedError
from serve_app.messages import AdapterRef
from serve_app.policy.adapter_retry import FailureBook
from serve_app.policy.adapter_shapes import ModelShape

logger = logging.getLogger(__name__)

_TRIES = 3
_LOOK_S = 10.0
"""For a look at a source: others wait for theirs meanwhile, and a store may not answer at all."""
T = TypeVar("T")


class AdapterStore:
    """Adapters of one base model. Lives on one event loop.

    Args:
        settings: The node's cache, and bounds.
        shape: What adapters of the base model must fit.
        max_rank: The engine's.
        workers: Who fetches. None makes them; then `close` ends them.
    """

    def __init__(
        self,
        settings: AdapterCacheSettings,
        shape: ModelShape,
        max_rank: int,
        workers: AdapterWorkers | None = None,
    ) -> None:
        self._shape = shape
        self._max_rank = max_rank
        self._has_own_workers = workers is None
        self._workers = workers or AdapterWorkers(settings)
        self._cache = AdapterCache(cache_folder_of(settings), int(settings.max_gib * (1 << 30)))
        self._failures = FailureBook()
        self._fetching: dict[str, asyncio.Task[Brought]] = {}
        self._holds: dict[str, tuple[Hold, int]] = {}
        """Folders that this process uses, and how often each was asked for."""

    async def warm_up(self) -> None:
        """Starts a process to import adapters, so that the first one does not wait for that."""
        await self._workers.warm_up()

    async def ensure(self, ref: AdapterRef) -> Path:
        """Returns the folder with an adapter's files, which stay until `release`.

        Raises:
            AdapterRefusedError: There is no such adapter, or it cannot be served.
            AdapterAwayError: It cannot be brought here now.
        """
        for _ in range(_TRIES):
            key = key_of(ref.version, self._shape) if ref.version else ""
            if key and (path := self._take_hold(key)) is not None:
                return path
            brought = await self._share(ref.place, lambda: self._bring(ref.source, ref.version))
            if (path := self._take_hold(brought.key)) is not None:
                return path
        raise AdapterAwayError("The node's cache of adapters is too small for those in use.", 5.0)

    def release(self, ref: AdapterRef) -> None:
        """Takes back one `ensure` of this version."""
        key = key_of(ref.version, self._shape)
        if key not in self._holds:
            return
        hold, count = self._holds[key]
        if count > 1:
            self._holds[key] = (hold, count - 1)
        else:
            del self._holds[key]
            hold.release()

    async def forget(self, ref: AdapterRef) -> None:
        """Removes an adapter from this node's disk, unless some process uses it."""
        try:
            await asyncio.to_thread(self._cache.discard, key_of(ref.version, self._shape))
        except OSError as error:
            logger.warning("Adapter %s stays on this node's disk: %s", ref.name, error)

    async def examine(self, source: str) -> AdapterFacts:
        """Brings whatever version a source has now; returns what it is.

        Raises:
            AdapterRefusedError: There is no such adapter, or it cannot be served.
            AdapterAwayError: It cannot be brought here now.
        """
        return (await self._share(f"{source}#", lambda: self._bring(source, ""))).facts

    async def look(self, source: str) -> str:
        """Returns the mark of what a source has now; another one means another version.

        Raises:
            AdapterRefusedError: There is no such adapter.
            AdapterAwayError: The source does not answer.
        """
        outcome = await self._workers.do(Look(source), _LOOK_S)
        if isinstance(outcome, Seen):
            return outcome.mark
        raise _failure_of(outcome)

    def forget_failure(self, source: str) -> None:
        """Lets a source be tried again at once: somebody says that it was mended."""
        self._failures.forget(f"{source}#")

    async def close(self) -> None:
        """Ends what is under way; gives everything back."""
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)
        for hold, _ in self._holds.values():
            hold.release()
        self._holds.clear()
        if self._has_own_workers:
            await self._workers.close()

    def _take_hold(self, key: str) -> Path | None:
        """Returns the folder of an adapter that is on this node's disk; None where it is not."""
        if key in self._holds:
            hold, count = self._holds[key]
            self._holds[key] = (hold, count + 1)
            return hold.path
        if (found := self._cache.hold(key)) is None:
            return None
        try:
            self._check_rank(read_facts(found.path))
        except (OSError, msgspec.MsgspecError):
            found.release()
            return None  # A worker finds it damaged, too, and brings it anew.
        except AdapterRefusedError:
            found.release()
            raise
        self._holds[key] = (found, 1)
        return found.path

    def _check_rank(self, facts: AdapterFacts) -> None:
        """An engine with a higher bound may have brought it to this node."""
        if facts.rank > self._max_rank:
            raise AdapterRefusedError(
                f"Its rank is {facts.rank} while the engine takes at most {self._max_rank}; "
                "train it with a lower rank, or raise the model's adapters.max_rank."
            )

    async def _share(self, what: str, work: Callable[[], Awaitable[Brought]]) -> Brought:
        """One fetch for all who wait. One that stops waiting does not end it for the others."""
        failure = self._failures.find(what, time.monotonic())
        if failure is not None:
            raise failure
        task = self._fetching.get(what)
        if task is None:
            task = asyncio.ensure_future(self._remembering(what, work))
            self._fetching[what] = task
            task.add_done_callback(lambda done: self._end(what, done))
        return await wait_shared(task)

    def _end(self, what: str, task: asyncio.Task[Brought]) -> None:
        del self._fetching[what]
        if not task.cancelled():
            task.exception()  # Whoever waited was told; perhaps nobody does any more.

    async def _remembering(self, what: str, work: Callable[[], Awaitable[Brought]]) -> Brought:
        try:
            brought = await work()
        except (AdapterRefusedError, AdapterAwayError) as failure:
            pause_s = self._failures.note(what, failure, time.monotonic())
            logger.warning("Adapter %s: %s Next try in %.0f s.", what, failure, pause_s)
            raise
        self._failures.forget(what)
        return brought

    async def _bring(self, source: str, version: str) -> Brought:
        outcome = await self._workers.do(Bring(source, version, self._shape, self._max_rank))
        if isinstance(outcome, Brought):
            self._check_rank(outcome.facts)
            return outcome
        raise _failure_of(outcome)


async def wait_shared(task: asyncio.Task[T]) -> T:
    """Waits for work that others wait for, too: who stops waiting does not end it for them.

    Raises:
        AdapterAwayError: It was ended because what it works for is made anew.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
        raise AdapterAwayError("What brings it here is being set up anew.", 1.0) from None


def _failure_of(outcome: Outcome) -> AdapterRefusedError | AdapterAwayError:
    if isinstance(outcome, Refused):
        return AdapterRefusedError(outcome.message, outcome.is_missing)
    assert isinstance(outcome, Away), "workers answer a job with an outcome of it"
    return AdapterAwayError(outcome.message, max(outcome.retry_after_s, 1.0))
