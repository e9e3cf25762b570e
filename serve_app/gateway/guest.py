"""A gateway as a guest of another cell: one model's connections there, and what is known of it."""

import itertools
import time
from collections.abc import Callable, Iterator

from serve_app.config import LimitSettings
from serve_app.dialect import dialect_of
from serve_app.gateway.gateway_metrics import ModelSeries
from serve_app.gateway.model_client import ModelClient
from serve_app.gateway.peers import PeerRouter, Peers
from serve_app.gateway.tickets import Sink, Ticket
from serve_app.messages import AdapterRef, EngineStatus, ModelStatus
from serve_app.names import ModelName
from serve_app.policy.peers import Haven

_NUMBERS = itertools.count()
_FIRST_WORD_S = 5.0
"""In which another cell has to say that it has engines."""
_CUT_OFF_S, _LONGEST_CUT_OFF_S = 3.0, 60.0
_SILENT_S = 3.5
"""Without a word from a router, which says how things stand about once a second."""


class Guest:
    """This gateway at another cell's router of a model.

    Args:
        peers: Of this cell.
        url: Of the other cell's gateways.
        name: The model's.
        identity: Of this gateway's connection in its own cell.
        limits: How often a request may lose its engine.
        series: Counts requests that lose their engine.
        on_adapter_failed: Called with an adapter that an engine could not have.
        sinks: Take what comes.
        on_stranded: Called with each request whose engine there cannot be reached from here.
        wants_front_end: Whether to ask how requests are read there.
        now_s: The monotonic clock.

    Attributes:
        client: The connections.
        used_s: When it last had a request there, or began.
        front_end: How requests are read there, as (config_id, payload); None is not known.
    """

    def __init__(
        self,
        peers: Peers,
        url: str,
        name: ModelName,
        identity: bytes,
        limits: LimitSettings,
        series: ModelSeries,
        on_adapter_failed: Callable[[AdapterRef], None],
        sinks: list[Sink],
        *,
        on_stranded: Callable[[Ticket], None],
        wants_front_end: bool,
        now_s: float,
    ) -> None:
        self.used_s = now_s
        self.front_end: tuple[str, bytes] | None = None
        self._store = peers.store
        self._router = PeerRouter(peers, url, name)
        self.client = ModelClient(
            name,
            # One cell may be known by two addresses.
            f"{peers.cell}.{next(_NUMBERS)}.".encode() + identity,
            self._router.find,
            limits,
            self._keep_front_end if wants_front_end else None,
            series,
            on_adapter_failed,
            sinks,
            on_stranded=on_stranded,
        )
        self.client.start()

    def _keep_front_end(self, config_id: str, payload: bytes) -> None:
        self.front_end = (config_id, payload)

    @property
    def has_answered(self) -> bool:
        """Whether the cell has said where its router is."""
        return self._router.at is not None

    @property
    def is_own(self) -> bool:
        """Whether it is this very cell."""
        return self._router.is_own

    @property
    def serves(self) -> bool:
        """Whether the cell has an engine that can be reached, as far as is known."""
        client = self.client
        is_silent = time.monotonic() - client.told_s > _SILENT_S
        is_there = client.is_connected and not is_silent and not self._is_cut_off
        return is_there and has_engine(client.status)

    @property
    def _is_cut_off(self) -> bool:
        """Whether its engines could not be reached just now. Longer, the more often that was so."""
        n = self.client.engines.n_unreached
        if not n:
            return False
        wait_s = min(_CUT_OFF_S * 2.0 ** min(n - 1, 10), _LONGEST_CUT_OFF_S)
        return time.monotonic() - self.client.engines.unreached_s < wait_s

    def is_useless(self, now_s: float) -> bool:
        """Whether there is no reason to stay."""
        is_late = now_s - self.used_s > _FIRST_WORD_S
        is_idle = not self.client.n_requests and not self.serves
        return is_late and is_idle and not self._is_cut_off  # It counts how long it will be.

    def view(self) -> Haven:
        """Returns what it has to offer."""
        at = self._router.at
        # The store numbers adapters.
        knows_adapters = at is not None and at.store != "" and at.store == self._store
        return view(self.client, knows_adapters=knows_adapters)

    def leave(self) -> None:
        """Hangs up. The router forgets what this gateway had there."""
        self.client.close()


def has_engine(status: ModelStatus) -> bool:
    """Returns whether a router knows an engine that takes requests."""
    return any(True for _ in _ready(status))


def view(client: ModelClient, *, knows_adapters: bool, is_home: bool = False) -> Haven:
    """Returns what a cell has to offer, by what its router said and what has gone there since."""
    status = client.status
    places = sum(engine.places for engine in _ready(status))
    busy = sum(engine.load.running + engine.load.waiting for engine in _ready(status))
    room = places - max(busy + status.waiting, client.n_requests)
    return Haven(dialect_of(status.config_id), room, knows_adapters, is_home)


def _ready(status: ModelStatus) -> Iterator[EngineStatus]:
    return (engine for engine in status.engines if engine.state == "ready")
