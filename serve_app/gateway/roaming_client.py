"""A model's client whose requests go on in other cells when their own has no engine left for them.

    engine lost -> own router: no other engine -> another cell's router -> its engines
                       ^                                    |
                       +------ none there any more ---------+

To another cell's router this gateway is one more gateway: requests wait for their turn there with
that cell's own, and are granted, charged and moved as those are. The client sees nothing of it.
A cell that has only gateways sends all its requests so.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

import msgspec

from serve_app.config import LimitSettings
from serve_app.dialect import dialect_of
from serve_app.gateway.gateway_metrics import ModelSeries
from serve_app.gateway.guest import Guest, has_engine, view
from serve_app.gateway.model_client import ModelClient
from serve_app.gateway.peers import Peers
from serve_app.gateway.tickets import Sink, Ticket
from serve_app.messages import AdapterRef, ModelStatus
from serve_app.names import ModelName
from serve_app.policy.peers import Haven, Homeless, find_havens
from serve_app.router_link import FindRouter

logger = logging.getLogger(__name__)

_HOME = ""
_LOOK_EVERY_S = 0.1
_VISIT_EVERY_S = 1.0
"""Between two looks for new cells."""
_MOST_GUESTS = 64
"""Cells that a gateway is a guest of at a time, for one model."""
_AVOID_S = 5.0
"""For so long a cell that had none is not asked again."""
_DEAF_S = 20.0
"""The same of one that does not even say where its router is."""
_CLOSELY_EVERY_S = 1.0
"""Between two looks for requests that a cell with engines has none for."""
_SHOWN_S = 5.0
"""For so long engines that are not seen any more are shown, as a router may just be replaced."""
_IDLE_S = 30.0
"""After so long without a request a gateway of a cell with engines is a guest no more."""


class RoamingClient(ModelClient):
    """Sends one model's requests to engines of this cell, and on to others' when it has none.

    Args:
        name: The base model's name.
        identity: Of this connection, unique in the cluster.
        find_router: How to find this cell's router of the model.
        limits: How often a request may lose its engine.
        on_front_end: As `ModelClient` has it. Other cells say it where this one has none.
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
        self._has_engines = not peers.settings.only_gateways
        super().__init__(
            name,
            identity,
            find_router,
            limits,
            on_front_end if self._has_engines else None,
            series,
            on_adapter_failed,
        )
        self.sleeps = sleeps
        self._identity = identity
        if not self._has_engines:
            self.missing = "no other cell has shown an engine yet; the front's bank names the cells"
        self._on_guests_front_end = on_front_end
        self._own_status = self.status
        self._read_as = ""
        """The front end that was taken from another cell last."""
        self._limits = limits
        self._peers = peers
        self._guests: dict[str, Guest] = {}
        """By the other cell's address."""
        self._avoided: dict[str, float] = {}
        """Cells that had no engine, and until when they are not asked again."""
        self._visited_s = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._visiting: asyncio.Task[None] | None = None
        self._shown_s = 0.0
        self._looked_closely_s = 0.0

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

    def begin(self, ticket: Ticket) -> None:
        """Queues a request that is new; where this cell has no engines, at another one's router."""
        place = _HOME
        if not self._has_engines:
            place = find_havens([_describe(ticket)], self._havens()).get(ticket.id, _HOME)
        if place == _HOME:
            super().begin(ticket)
        else:
            self._guests[place].client.begin(ticket)

    def has_requests_of(self, sink: Sink) -> bool:
        """Whether a front end still waits for outputs, from whichever cell."""
        guests = (guest.client for guest in self._guests.values())
        return super().has_requests_of(sink) or any(g.has_requests_of(sink) for g in guests)

    def abort(self, request_ids: list[str]) -> None:
        """Ends requests, waiting or running, wherever they are. Unknown ids are ignored."""
        super().abort(request_ids)
        for guest in self._guests.values():
            guest.client.abort(request_ids)

    def _take_status(self, status: ModelStatus) -> None:
        if self._has_engines:
            super()._take_status(status)
        else:
            self._own_status = status
            self._show_guests()

    # --- between cells ----------------------------------------------------------------------

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                self._look(time.monotonic())
            except Exception:
                logger.exception("Requests of %s could not be moved between cells.", self.name)

    def _look(self, now_s: float) -> None:
        seeking = {ticket.id: (client, ticket) for client, ticket in self._find_homeless()}
        if now_s - self._looked_closely_s > _CLOSELY_EVERY_S:
            self._looked_closely_s = now_s
            seeking |= {ticket.id: (client, ticket) for client, ticket in self._find_left()}
        wanted = [_describe(ticket) for _, ticket in seeking.values()]
        found = find_havens(wanted, self._havens()) if wanted else {}
        for ticket_id, place in found.items():
            self._move(*seeking.pop(ticket_id), place)
        for client, ticket in seeking.values():
            # What waits nowhere waits at its own router, where nobody waits for ever.
            if client is not self and not client.is_connected:
                self._move(client, ticket, _HOME)
        if seeking or not self._has_engines:
            self._visit(now_s)
        if not self._has_engines:
            self._show_guests()
            self._read_as_guests_do()
        self._leave_unused(now_s)

    def _find_homeless(self) -> Iterator[tuple[ModelClient, Ticket]]:
        if not self._serves:
            for ticket in self.waiting():
                # What a model that sleeps has not begun is what wakes it.
                if ticket.n_runs or not (self.sleeps and self._has_engines):
                    yield self, ticket
        for guest in self._guests.values():
            if not guest.serves:
                for ticket in guest.client.waiting():
                    yield guest.client, ticket

    def _find_left(self) -> Iterator[tuple[ModelClient, Ticket]]:
        """What waits in a cell whose engines are of another dialect by now."""
        places = [(self, self._serves), *((g.client, g.serves) for g in self._guests.values())]
        for client, serves in places:
            spoken = ("", dialect_of(client.status.config_id))
            if serves and (client is not self or self._has_engines):
                for ticket in client.waiting():
                    if ticket.enqueue.dialect not in spoken:
                        yield client, ticket

    def _place(self, ticket: Ticket) -> None:
        """Has a request go on that another cell's client gave up, wherever it can."""
        place = find_havens([_describe(ticket)], self._havens()).get(ticket.id, _HOME)
        (self if place == _HOME else self._guests[place].client).take_over(ticket)
        self._series.change_cell()

    @property
    def _serves(self) -> bool:
        """Whether this cell has an engine. Its own router may be away for a moment."""
        return self._has_engines and has_engine(self.status)

    def _havens(self) -> dict[str, Haven]:
        seen = {url: guest.view() for url, guest in self._guests.items() if guest.serves}
        # One that leaves is named no more, and still better than none.
        named = {url: haven for url, haven in seen.items() if url in self._peers.urls}
        havens = named or seen
        if self._serves:
            havens[_HOME] = view(self, knows_adapters=True, is_home=True)
        return havens

    def _move(self, client: ModelClient, ticket: Ticket, place: str) -> None:
        other = self if place == _HOME else self._guests[place].client
        client.release(ticket)
        other.take_over(ticket)
        self._series.change_cell()
        where = "its own cell" if place == _HOME else f"the cell at {place}"
        logger.info("%s goes on in %s after %d tokens.", ticket.id, where, len(ticket.produced))

    # --- guests -----------------------------------------------------------------------------

    def _visit(self, now_s: float) -> None:
        """Looks for more cells, in the background."""
        if now_s - self._visited_s < _VISIT_EVERY_S:
            return
        self._visited_s = now_s
        self._avoided = {url: end_s for url, end_s in self._avoided.items() if end_s > now_s}
        if self._visiting is None or self._visiting.done():
            self._visiting = asyncio.create_task(self._visit_all(), name=f"visit {self.name}")

    async def _visit_all(self) -> None:
        for cell in await self._peers.list_cells():
            if cell.url not in self._guests and cell.url not in self._avoided:
                if len(self._guests) >= _MOST_GUESTS:
                    return
                self._guests[cell.url] = Guest(
                    self._peers,
                    cell.url,
                    self.name,
                    self._identity,
                    self._limits,
                    self._series,
                    self._on_adapter_failed,
                    self._sinks,
                    on_stranded=self._place,
                    wants_front_end=not self._has_engines,
                    now_s=time.monotonic(),
                )

    def _leave_unused(self, now_s: float) -> None:
        for url, guest in list(self._guests.items()):
            if guest.client.n_requests or (guest.serves and not self._has_engines):
                guest.used_s = now_s
            if guest.is_own:
                self._peers.own_urls.add(url)
                self._leave(url)
            elif guest.is_useless(now_s):
                self._avoided[url] = now_s + (_AVOID_S if guest.has_answered else _DEAF_S)
                self._leave(url)
            elif now_s - guest.used_s > _IDLE_S:
                self._leave(url)

    def _leave(self, url: str) -> None:
        self._guests.pop(url).leave()

    # --- of a cell without engines ----------------------------------------------------------

    def _show_guests(self) -> None:
        """Has this cell's status tell of the engines that it sends requests to."""
        seen = [guest.client.status for guest in self._guests.values() if guest.serves]
        now_s = time.monotonic()
        if not seen and now_s - self._shown_s < _SHOWN_S:
            return
        self._shown_s = now_s
        self.status = msgspec.structs.replace(
            self._own_status,
            config_id=self._read_as,
            engines=[engine for status in seen for engine in status.engines],
            waiting=self._own_status.waiting + sum(status.waiting for status in seen),
            scaling=None,
            note="",
        )

    def _read_as_guests_do(self) -> None:
        """Takes a front end from a cell; another one when no cell is left that understands it."""
        offers = [
            (guest.view().room, *o) for guest in self._guests.values() if (o := _offer(guest))
        ]
        spoken = {dialect_of(config_id) for _, config_id, _ in offers}
        if offers and dialect_of(self._read_as) not in spoken:
            _, self._read_as, payload = max(offers)
            self._on_guests_front_end(self._read_as, payload)


def _offer(guest: Guest) -> tuple[str, bytes] | None:
    """How requests are read in a cell that serves; None while that is not known."""
    offer = guest.front_end if guest.serves else None
    return offer if offer is not None and offer[0] == guest.client.status.config_id else None


def _describe(ticket: Ticket) -> Homeless:
    asked = ticket.enqueue
    return Homeless(ticket.id, asked.tenant, asked.dialect, asked.adapter is not None)
