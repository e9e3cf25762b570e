"""A gateway's connections to the engines that run its requests for one model."""

import time
from collections.abc import Callable, Set
from functools import partial

import zmq

from serve_app.engine_frames import ALIVE, BEGIN
from serve_app.messages import EngineId, Grant
from serve_app.wire import Frames, Link

_SILENT_ENGINE_S = 2.0
"""A killed process closes its connections last, after giving back its memory, which may take
seconds; it falls silent first."""


class EngineLinks:
    """Connects to an engine when a request first goes there.

    Args:
        identity: Of this end.
        on_frames: Called with each message.
        on_lost: Called with an engine whose connection broke, and whether that had ever worked.

    Attributes:
        n_unreached: Engines that never said anything, one after the other.
        unreached_s: When the last of these was given up, by the monotonic clock.
    """

    def __init__(
        self,
        identity: bytes,
        on_frames: Callable[[list[zmq.Frame]], None],
        on_lost: Callable[[EngineId, bool], None],
    ) -> None:
        self.n_unreached = 0
        self.unreached_s = 0.0
        self._identity = identity
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._links: dict[EngineId, Link] = {}
        self._heard: set[EngineId] = set()

    def start(self, grant: Grant, frames: Frames) -> None:
        """Sends a request to the engine that it was granted."""
        link = self._links.get(grant.engine_id)
        if link is None:
            link = self._links[grant.engine_id] = self._connect(grant)
        link.send(frames)

    def send(self, engine_id: EngineId, frames: Frames) -> None:
        """Sends if connected."""
        if engine_id in self._links:
            self._links[engine_id].send(frames)

    def say_alive(self) -> None:
        """Tells all engines that this gateway lives."""
        for link in self._links.values():
            link.send([ALIVE])

    def keep(self, engines: Set[EngineId]) -> None:
        """Hangs up on all others."""
        for engine_id in self._links.keys() - engines:
            self._links.pop(engine_id).close()
            self._heard.discard(engine_id)

    def close(self) -> None:
        """Hangs up on all."""
        self.keep(set())

    def _connect(self, grant: Grant) -> Link:
        link = Link(
            grant.endpoint,
            self._identity,
            partial(self._hear, grant.engine_id),
            lambda: self._lose(grant.engine_id),
            silent_s=_SILENT_ENGINE_S,
        )
        link.send([BEGIN])
        return link

    def _hear(self, engine_id: EngineId, frames: list[zmq.Frame]) -> None:
        self._heard.add(engine_id)
        self.n_unreached = 0
        self._on_frames(frames)

    def _lose(self, engine_id: EngineId) -> None:
        """Its connection broke: a process that ends is known by that, at once."""
        self._links.pop(engine_id, None)
        was_heard = engine_id in self._heard
        if not was_heard:
            self.n_unreached, self.unreached_s = self.n_unreached + 1, time.monotonic()
        self._heard.discard(engine_id)
        self._on_lost(engine_id, was_heard)
