"""Keeps what one cell may count of limits that hold for several cells together.

Inputs: what the bank gives (`limit_bank`), what counts here, what waits here, `now_s`.

The rule:
  - A limit counts here up to what this cell holds of it. Nothing is held of one that is new.
  - Before the bank is told, all is given up but what counts and what two exchanges may need.
  - Without an answer for `lease_s`, the cell counts up to its equal part by itself.

Invariants (each a property test of that name):

1. never_beyond_what_is_held: while answers come, only the bank raises what is held.
2. idle_limits_are_given_back: of what nobody uses nothing is held after an exchange.
3. cut_off_counts_its_part: without an answer for `lease_s` no more than an equal part is taken, or
   what was held.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.cell_messages import Count, Part, Parts
from serve_app.policy.limit_bank import LEASE_S

_AHEAD = 2
"""Exchanges that a cell keeps enough for."""
_MEMORY = 0.5
"""Of the mean of what earlier exchanges needed, from one to the next."""


@dataclass
class _Share:
    limit: int
    held: int = 0
    wanted: int = 0
    taken: int = 0
    """Granted since the last exchange."""
    mean: float = 0.0
    """Of what exchanges took."""
    elsewhere: int = 0
    lasts: bool = False
    is_dry: bool = False
    """Whether the bank had less than was wanted, when it was asked last."""


ReadUsed = Callable[[str], int]
"""Says what counts here of a limit, by its name."""


class LimitShares:
    """What one cell holds.

    Args:
        now_s: Time.
        lease_s: Seconds without an answer after which this cell counts by itself.
    """

    def __init__(self, now_s: float, lease_s: float = LEASE_S) -> None:
        self._lease_s = lease_s
        self._answered_s = now_s
        self._n_cells = 1
        self._has_cells = False
        self._shares: dict[str, _Share] = {}

    def most(self, name: str, limit: int, now_s: float) -> int:
        """Return up to which a limit counts here."""
        share = self._share(name, limit)
        if now_s - self._answered_s > self._lease_s and self._has_cells:
            share.held = max(share.held, limit // self._n_cells)
        return min(share.held, limit)

    def elsewhere(self, name: str) -> int:
        """Return what other cells hold of a limit, as was last heard."""
        share = self._shares.get(name)
        return 0 if share is None else share.elsewhere

    def is_dry(self, name: str) -> bool:
        """Return whether asking for more at once is of no use."""
        share = self._shares.get(name)
        return share is not None and share.is_dry

    def note(self, name: str, limit: int, *, lasts: bool = False) -> None:
        """Take note of a limit, and whether it is of a day or a month."""
        self._share(name, limit).lasts = lasts

    def want(self, name: str, limit: int, amount: int) -> None:
        """Note that a request waits for more than is held."""
        self._share(name, limit).wanted += amount

    def take(self, name: str, limit: int, amount: int) -> None:
        """Note that a request was granted."""
        self._share(name, limit).taken += amount

    def give_up(self, used: ReadUsed) -> list[Count]:
        """Give up what is not needed; return what the bank is to be told."""
        counts: list[Count] = []
        for name, share in list(self._shares.items()):
            counted = used(name)
            share.mean = max(share.taken, _MEMORY * share.mean)
            if share.mean < 1:
                share.mean = 0.0
            share.taken, share.is_dry = 0, False
            share.held = max(counted, min(share.held, counted + round(_AHEAD * share.mean)))
            if not (share.held or share.wanted):  # which it may be again at any time
                del self._shares[name]
                continue
            counts.append(Count(name, share.limit, counted, share.held, share.wanted, share.lasts))
            share.wanted = 0
        return counts

    def answer(self, counts: Sequence[Count], parts: Parts, asked_s: float) -> None:
        """Take what the bank gave.

        Args:
            counts: What it was told.
            parts: Its answer.
            asked_s: When it was told.
        """
        self._answered_s = max(self._answered_s, asked_s)
        self._n_cells, self._has_cells = parts.n_cells, True
        for count, part in zip(counts, parts.parts, strict=True):
            self._raise(count, part)

    def _raise(self, count: Count, part: Part) -> None:
        share = self._share(count.name, count.limit)
        share.held = max(share.held, part.held)
        share.elsewhere = part.elsewhere
        share.is_dry = part.held - count.held < count.wanted

    def _share(self, name: str, limit: int) -> _Share:
        share = self._shares.setdefault(name, _Share(limit))
        share.limit = limit
        return share
