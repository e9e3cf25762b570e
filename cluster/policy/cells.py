"""Decides how much of the work each cell gets that a front spreads.

Inputs: the cells, what each says of its load, where the front is, the weights of before.

The rule:
  - A front may use what others leave of a cell: its places less what others have there; where more
    is there than places, the part of them that it has of the requests.
  - Near cells are filled before far ones, and of equally near ones cheap before dear ones, each to
    `fill` of that room. What is left goes to all, by room.
  - Every cell gets a trickle, so that its caches are warm and its troubles are known before it is
    needed.
  - Weights stay as they are while none would change by more than a fifth: each change moves some
    tenants to another cell, away from what it has cached of them.

Invariants (each a property test of that name):

1. every_cell_gets_something: no weight is below 1 or above `MOST`.
2. near_and_cheap_first: of two cells with equal load, the nearer, or as near and cheaper, has no
   smaller weight.
3. own_requests_move_nothing: which cell runs this front's requests does not change a cell's room
   while it has places.
4. all_full_goes_by_room: when there is more to do than room, weights are in proportion to room.
5. weights_hold_still: decided again upon its own answer, nothing changes.

Source: our own. Between these weights HAProxy chooses by consistent hashing with bounded loads
(Mirrokni, Thorup, Zadimoghaddam, SODA 2018).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST = 200
"""Greatest weight; HAProxy's is 256."""
TRICKLE = 0.02
"""Part of a cell's room that it gets at least."""
_GROWTH = 1.25
"""What is to be spread grows by so much at most from one look to the next, and by one request."""
_CLASS = 1.25
"""Prices that differ by less than this factor are alike."""
_FREE = 1e-4
"""US dollars an hour and place below which prices are alike."""
_STILL = 0.2


@dataclass(frozen=True)
class Cell:
    """Where a front may send requests.

    Attributes:
        name: Unique, and never used again for another one.
        url: Where its gateways are.
        zone: CLOUD/REGION/ZONE; empty is not known.
        usd_per_h: What it costs; None is not known.
        leaves: Whether it is to get nothing new.
    """

    name: str
    url: str
    zone: str = ""
    usd_per_h: float | None = None
    leaves: bool = False


@dataclass(frozen=True)
class CellLoad:
    """What there is to do in a cell.

    Attributes:
        places: Requests that it runs at a time.
        busy: Requests that run or wait there, whoever sent them.
        ours: Requests that this front has there.
    """

    places: int
    busy: int = 0
    ours: int = 0


def find_room(load: CellLoad) -> float:
    """Return how many requests a front may have in a cell without others' having to wait."""
    all_there = max(load.busy, load.ours)
    if all_there <= load.places:
        return load.places - (all_there - load.ours)
    return load.places * load.ours / all_there


def distance(here: str, there: str) -> int:
    """Return how far two zones are: 0 the same, 1 in the region, 2 in the cloud, 3 elsewhere."""
    alike = 0
    for one, other in zip(here.split("/"), there.split("/"), strict=False):
        if not one or one != other:
            break
        alike += 1
    return 3 - alike


def choose_weights(
    cells: Sequence[Cell],
    loads: Mapping[str, CellLoad],
    here: str,
    fill: float,
    before: Mapping[str, int],
) -> dict[str, int]:
    """Return a weight for each cell.

    Args:
        cells: Those that serve and stay.
        loads: Of each of them, by name.
        here: The front's zone.
        fill: Part of the room of better cells that is taken first.
        before: Weights of now; returned again where little would change.
    """
    rooms = {cell.name: max(find_room(loads[cell.name]), TRICKLE) for cell in cells}
    rest = _GROWTH * sum(loads[cell.name].ours for cell in cells) + 1.0
    shares = {name: TRICKLE * room for name, room in rooms.items()}
    for group in _in_order(cells, loads, here):
        rest = _fill(group, rooms, fill, rest, shares)
    all_room = sum(rooms.values())
    for name, room in rooms.items():
        shares[name] += rest * room / all_room
    # Beyond what all can take it is room alone that counts.
    if sum(shares.values()) > all_room:
        shares = rooms
    weights = _scale(shares)
    return dict(before) if _is_still(weights, before) else weights


def _in_order(cells: Sequence[Cell], loads: Mapping[str, CellLoad], here: str) -> list[list[str]]:
    """Return the cells' names, the best first; those that are equally good together."""
    groups: dict[tuple[int, float], list[str]] = {}
    prices = {cell.name: _price_of_place(cell, loads[cell.name]) for cell in cells}
    least = min(prices.values(), default=_FREE)
    for cell in cells:
        rank = (distance(here, cell.zone) if here else 0, _price_class(prices[cell.name], least))
        groups.setdefault(rank, []).append(cell.name)
    return [groups[rank] for rank in sorted(groups)]


def _price_of_place(cell: Cell, load: CellLoad) -> float:
    if cell.usd_per_h is None:
        return math.inf
    return max(cell.usd_per_h / max(load.places, 1), _FREE)


def _price_class(price: float, least: float) -> float:
    if math.isinf(price):
        return price
    return math.floor(math.log(price / least, _CLASS))


def _fill(
    group: Sequence[str],
    rooms: Mapping[str, float],
    fill: float,
    rest: float,
    shares: dict[str, float],
) -> float:
    """Give a group what it may take; return what is left for others."""
    able = {name: max(0.0, fill * rooms[name] - shares[name]) for name in group}
    all_able = sum(able.values())
    taken = min(rest, all_able)
    for name in group:
        shares[name] += taken * able[name] / all_able if all_able else 0.0
    return rest - taken


def _scale(shares: Mapping[str, float]) -> dict[str, int]:
    most = max(shares.values(), default=1.0)
    return {name: max(1, round(MOST * share / most)) for name, share in shares.items()}


def _is_still(weights: Mapping[str, int], before: Mapping[str, int]) -> bool:
    if weights.keys() != before.keys():
        return False
    return all(
        abs(w - before[name]) <= max(1, _STILL * before[name]) for name, w in weights.items()
    )
