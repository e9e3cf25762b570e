"""What a cell says to the bank of its fleet, and to another cell, as JSON over HTTP.

A cell's ledger asks for its part of limits, its routers tell what tenants were served. Each says
all that the bank has to know of it, so that a bank which starts anew learns everything again.
A cell's gateways ask the bank which cells there are, and another cell's where its routers are.
"""

import msgspec

LIMITS_PATH = "/fleet/limits"
SERVICE_PATH = "/fleet/service"
CELLS_PATH = "/fleet/cells"
ROUTER_PATH = "/fleet/router"
"""Of a gateway, and not of the bank."""


class Count(msgspec.Struct, frozen=True):
    """How one cell stands with one limit."""

    name: str
    """Whom it binds, which limit, and of which day or month; the same in all cells."""
    limit: int
    """What all cells together may count."""
    used: int
    """What counts in this cell now."""
    held: int
    """What this cell may count, and no more until it is answered; at least `used`."""
    wanted: int
    """What waits in this cell for more than that."""
    lasts: bool = False
    """Whether it is of a day or a month: what was counted stays so when the cell is gone."""


class TellLimits(msgspec.Struct, frozen=True):
    """A cell's ledger: how it stands with all limits that it has something of."""

    cell: str
    run: str
    """Of this ledger's process."""
    turn: int
    """More with each; one that was overtaken on the way is not looked at."""
    counts: list[Count]


class Part(msgspec.Struct, frozen=True):
    """What the bank says of one limit."""

    held: int
    """What the cell may count from now on; never less than it said."""
    elsewhere: int
    """What other cells may count: nobody else may."""


class Parts(msgspec.Struct, frozen=True):
    """Answer to `TellLimits`, in its order."""

    parts: list[Part]
    n_cells: int
    """Cells that the bank knows."""


class TellService(msgspec.Struct, frozen=True):
    """A cell's router: what it has served tenants since it began to count, by weight."""

    cell: str
    domain: str
    run: str
    """Of this count: another one, of this or another process, begins from nothing."""
    bank: str
    """Of the bank's process that it heard last; empty is none."""
    heard: int
    """`turn` of that answer."""
    served: dict[str, float]
    """Of tenants for whom it has changed since then."""


class ServedElsewhere(msgspec.Struct, frozen=True):
    """Answer to `TellService`: what other cells served tenants since the bank started."""

    bank: str
    """Of this bank's process: another one counts from nothing."""
    turn: int
    """More with each answer."""
    served: dict[str, float]
    """Of tenants for whom it has changed since what the router heard last."""


class AskCells(msgspec.Struct, frozen=True):
    """A cell's gateway: which cells are there?"""

    cell: str


class PeerCell(msgspec.Struct, frozen=True):
    """One cell that takes requests, as the front sees it."""

    url: str
    """Where its gateways answer."""
    places: int
    """Requests that its engines run at a time."""


class PeerCells(msgspec.Struct, frozen=True):
    """Answer to `AskCells`."""

    cells: list[PeerCell]


class AskRouter(msgspec.Struct, frozen=True):
    """A cell's gateway to one of another cell: where is the router of a model?"""

    model: str


class RouterAt(msgspec.Struct, frozen=True):
    """Answer to `AskRouter`. `key` is a capability, as in `messages.Endpoint`; never logged."""

    cell: str
    address: str
    key: bytes
    store: str
    """Tells stores apart that cells share; empty is one of this cell alone."""
