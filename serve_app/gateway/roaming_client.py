"""A model's client whose requests go on in other cells when their own has no engine left for them.

    engine lost -> own router: no other engine -> another cell's router -> its engines
                       ^                                    |
                       +------ none there any more ---------+

To another cell's router this gateway is one more gateway: requests wait for their turn there with
that cell's own, and are granted, charged and moved as those are. The client sees nothing of it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serve_app.config import LimitSettings
from serve_app.dialect import dialect_of
from serve_app.gateway.gateway_metrics import ModelSeries
from serve_app.gateway.model_client import ModelClient
from serve_app.gateway.peers import PeerRouter, Peers
from serve_app.gateway.tickets import Sink, Ticket
from serve_app.messages import AdapterRef, EngineStatus, ModelStatus
from serve_app.names import ModelName
from serve_app.policy.peers import Haven, Homeless, find_havens
from serve_app.router_link import FindRouter

logger = logging.getLogger(__name__)

_HOME = ""
_LOOK_EVERY_S = 0.1
_MOST_GUESTS = 8
"""Cells that a gateway is a guest of at a time, for one model."""
_FIRST_WORD_S = 5.0
"""In which another cell has to say that it has engines."""
_AVOID_S = 15.0
"""For so long a cell that had none is not asked again."""
_IDLE_S = 30.0
"""After so long without a request a gateway is a guest no more."""


@dataclass
class _Guest:
    """This gateway at another cell's router."""

    client: ModelClient
    router: PeerRouter
    used_s: float
    """When it last had something there, or began."""

    def is_useless(self, now_s: float) -> bool:
        if self.client.n_requests or _serves(self.client):
            return False
        return now_s - self.used_s > _FIRST_WORD_S

    def leave(self) -> "asyncio.Task[None]":
        self.client.close()
        return asyncio.create_task(self.router.close(), name="leave cell")


class RoamingClient(ModelClient):
    """Sends one model's requests to engines of this cell, and on to others' when it has none.

    Args:
        name: The base model's name.
        identity: Of this connection, unique in the cluster.
        find_router: How to find this cell's router of the model.
        limits: How often a request may lose its engine.
        on_front_end: As `ModelClient` has it. Other cells do not say how requests are read.
        series: Counts requests that lose their engine.
        on_adapter_failed: Called with an adapter that an engine could not have.
        peers: Knows other cells.
        sleeps: Whether the model may sleep here: then new requests wake it, and wait.
    """

    def __init__(
        self,
        name: ModelName,
        identity: bytes,
        find_router: FindRouter,
        limits: LimitSettings,
        on_front_end: Callable[[str, bytes], None],
        series: ModelSeries,
        on_adapter_failed: Callable[[AdapterRef], None],
        *,
        peers: Peers,
        sleeps: bool,
    ) -> None:
        super().__init__(
            name, identity, find_router, limits, on_front_end, series, on_adapter_failed
        )
        self.sleeps = sleeps
        self._limits = limits
        self._peers = peers
        self._guests: dict[str, _Guest] = {}
        """By the other cell's address."""
        self._avoided: dict[str, float] = {}
        """Cells that had no engine, and until when they are not asked again."""
        self._looking: asyncio.Task[None] | None = None
        self._visiting: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    # --- as other clients do ----------------------------------------------------------------

    def configure(self, limits: LimitSettings) -> None:
        """Takes new limits; they hold from the next event on."""
        self._limits = limits
        super().configure(limits)
        for guest in self._guests.values():
            guest.client.configure(limits)

    def start(self) -> None:
        """Begins to connect, in the background."""
        super().start()
        self._looking = asyncio.create_task(self._look_regularly(), name=f"cells {self.name}")

    def close(self) -> None:
        """Drops every connection. Engines and routers abort what this gateway had there."""
        for task in (self._looking, self._visiting):
            if task is not None:
                task.cancel()
        for url in list(self._guests):
            self._leave(url)
        super().close()

    def has_requests_of(self, sink: Sink) -> bool:
        """Whether a front end still waits for outputs, from whichever cell."""
        guests = (guest.client for guest in self._guests.values())
        return super().has_requests_of(sink) or any(g.has_requests_of(sink) for g in guests)

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests, waiting or running, wherever they are. Unknown ids are ignored."""
        super().abort(request_ids)
        for guest in self._guests.values():
            guest.client.abort(request_ids)

    # --- between cells ----------------------------------------------------------------------

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                self._look(time.monotonic())
            except Exception:
                logger.exception("Requests of %s could not be moved between cells.", self.name)

    def _look(self, now_s: float) -> None:
        homeless = {ticket.id: (client, ticket) for client, ticket in self._find_homeless()}
        wanted = [_describe(ticket) for _, ticket in homeless.values()]
        found = find_havens(wanted, self._havens()) if wanted else {}
        for ticket_id, place in found.items():
            self._move(*homeless.pop(ticket_id), place)
        if homeless:
            self._bring_back([pair for pair in homeless.values() if not pair[0].is_connected])
            self._visit(now_s)
        self._leave_unused(now_s)

    def _find_homeless(self) -> Iterator[tuple[ModelClient, Ticket]]:
        for client in (self, *(guest.client for guest in self._guests.values())):
            if not _serves(client):
                for ticket in client.waiting():
                    # What a model that sleeps has not begun is what wakes it.
                    if client is not self or ticket.n_runs or not self.sleeps:
                        yield client, ticket

    def _havens(self) -> dict[str, Haven]:
        havens = {
            url: _view(guest.client, knows_adapters=self._shares_store(guest))
            for url, guest in self._guests.items()
            if _serves(guest.client)
        }
        if _serves(self):
            havens[_HOME] = _view(self, knows_adapters=True, is_home=True)
        return havens

    def _shares_store(self, guest: _Guest) -> bool:
        """Whether an adapter's id is the same there: the store gives them."""
        at = guest.router.at
        return at is not None and at.store != "" and at.store == self._peers.store

    def _move(self, client: ModelClient, ticket: Ticket, place: str) -> None:
        other = self if place == _HOME else self._guests[place].client
        client.release(ticket)
        other.take_over(ticket)
        where = "its own cell" if place == _HOME else f"the cell at {place}"
        logger.info("%s goes on in %s after %d tokens.", ticket.id, where, len(ticket.produced))

    def _bring_back(self, lost: list[tuple[ModelClient, Ticket]]) -> None:
        """Has what waits nowhere wait here, where it is not waited for for ever."""
        for client, ticket in lost:
            if client is not self:
                self._move(client, ticket, _HOME)

    def _visit(self, now_s: float) -> None:
        """Looks for more cells, in the background."""
        self._avoided = {url: end_s for url, end_s in self._avoided.items() if end_s > now_s}
        if self._visiting is None or self._visiting.done():
            self._visiting = asyncio.create_task(self._visit_more(), name=f"visit {self.name}")

    async def _visit_more(self) -> None:
        for cell in await self._peers.list_cells():
            if len(self._guests) >= _MOST_GUESTS:
                return
            if cell.url not in self._guests and cell.url not in self._avoided:
                self._guests[cell.url] = guest = self._make_guest(cell.url)
                guest.client.start()

    def _make_guest(self, url: str) -> _Guest:
        router = PeerRouter(self._peers, url, self.name)
        client = ModelClient(
            self.name,
            self._peers.cell.encode() + b"." + self._identity,
            router.find,
            self._limits,
            None,
            self._series,
            self._on_adapter_failed,
            self._sinks,
        )
        return _Guest(client, router, time.monotonic())

    def _leave_unused(self, now_s: float) -> None:
        for url, guest in list(self._guests.items()):
            if guest.client.n_requests:
                guest.used_s = now_s
            if guest.router.is_own:
                self._peers.own_urls.add(url)
                self._leave(url)
            elif guest.is_useless(now_s):
                self._avoided[url] = now_s + _AVOID_S
                self._leave(url)
            elif now_s - guest.used_s > _IDLE_S:
                self._leave(url)

    def _leave(self, url: str) -> None:
        leaving = self._guests.pop(url).leave()
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)


def _serves(client: ModelClient) -> bool:
    """Whether its cell has an engine. A router of another cell that is away says nothing."""
    is_heard = client.is_connected or isinstance(client, RoamingClient)
    return is_heard and any(_ready(client.status))


def _ready(status: ModelStatus) -> Iterator[EngineStatus]:
    return (engine for engine in status.engines if engine.state == "ready")


def _view(client: ModelClient, *, knows_adapters: bool, is_home: bool = False) -> Haven:
    status = client.status
    room = sum(engine.places - engine.load.running for engine in _ready(status))
    dialect = dialect_of(status.config_id)
    return Haven(dialect, room - status.waiting, knows_adapters, is_home)


def _describe(ticket: Ticket) -> Homeless:
    asked = ticket.enqueue
    return Homeless(ticket.id, asked.dialect, asked.adapter is not None)
