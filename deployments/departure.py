"""How an engine leaves: nothing new, what can end ends, the rest moves in time."""

import asyncio
import math
import time
from collections.abc import Callable

_MOVE_S = 2.0
"""Before the end of a drain, for what still runs to go elsewhere. It takes far less."""
_LOOK_EVERY_S = 0.05


class Departure:
    """An engine's, from the first word of it on.

    Args:
        is_busy: Whether it runs anything still.
        on_begin: Refuses what is new from now on.
        on_move: Has what still runs go on elsewhere.
    """

    def __init__(
        self, is_busy: Callable[[], bool], on_begin: Callable[[], None], on_move: Callable[[], None]
    ) -> None:
        self._is_busy = is_busy
        self._on_begin = on_begin
        self._on_move = on_move
        self._task: asyncio.Task[None] | None = None
        self._moves_s = self._ends_s = math.inf

    @property
    def has_begun(self) -> bool:
        """Whether it was told to leave."""
        return self._task is not None

    async def leave(self, timeout_s: float) -> None:
        """Returns when nothing runs, or after this time.

        Who calls again meanwhile waits for the same end; it can only come sooner.
        """
        now_s = time.monotonic()
        self._ends_s = min(self._ends_s, now_s + timeout_s)
        self._moves_s = min(self._moves_s, self._ends_s - min(_MOVE_S, timeout_s / 2))
        if self._task is None:
            self._task = asyncio.create_task(self._leave(), name="departure")
        await asyncio.shield(self._task)

    async def _leave(self) -> None:
        self._on_begin()
        while time.monotonic() < self._moves_s and self._is_busy():  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(_LOOK_EVERY_S)
        self._on_move()
        while time.monotonic() < self._ends_s and self._is_busy():  # noqa: ASYNC110 - another thread's
            await asyncio.sleep(_LOOK_EVERY_S)
