"""In which cell a request runs whose own cell has no engine for it.

The own cell comes first: it knows the request already. Else, of the cells with room, the one that
a hash of its tenant prefers, so that prefix caches meet a tenant again; room is counted down with
each request that goes there. Where none has room, it is the one that lacks least.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from serve_app.messages import TicketId
from serve_app.names import TenantId


@dataclass(frozen=True)
class Homeless:
    """A request whose cell has no engine for it.

    Attributes:
        ticket: Its name.
        tenant: Whose it is.
        dialect: Of its tokens: engines of another one cannot go on with it. Empty is any.
        has_adapter: Whether it runs with an adapter.
    """

    ticket: TicketId
    tenant: TenantId
    dialect: str = ""
    has_adapter: bool = False


@dataclass(frozen=True)
class Haven:
    """A cell that has engines.

    Attributes:
        dialect: That its engines speak.
        room: Requests that its engines have places for; less than 0 where more wait.
        knows_adapters: Whether an adapter's id means the same there.
        is_home: Whether it is the cell that the requests came to.
    """

    dialect: str
    room: int
    knows_adapters: bool = False
    is_home: bool = False

    def takes(self, request: Homeless) -> bool:
        """Return whether a request can go on here."""
        is_understood = request.dialect in ("", self.dialect)
        return is_understood and (self.knows_adapters or not request.has_adapter)


def find_havens(homeless: Sequence[Homeless], havens: Mapping[str, Haven]) -> dict[TicketId, str]:
    """Return where each request goes, by ticket; those that nobody can have are left out.

    Args:
        homeless: The requests, those first that are to have the better places.
        havens: The cells with engines, by name.
    """
    room = {name: haven.room for name, haven in havens.items()}
    found: dict[TicketId, str] = {}

    def order(request: Homeless, name: str) -> tuple[bool, bool, int]:
        has_room = room[name] > 0
        likes = hashlib.blake2b(f"{request.tenant} {name}".encode(), digest_size=4)
        rank = int.from_bytes(likes.digest()) if has_room else room[name]
        return havens[name].is_home, has_room, rank

    for request in homeless:
        able = [name for name, haven in havens.items() if haven.takes(request)]
        if able:
            best = max(able, key=partial(order, request))
            room[best] -= 1
            found[request.ticket] = best
    return found
