"""Decides what each cell may count of a limit that holds for all of them together.

Inputs: how each cell says that it stands with each limit, `now_s` of one clock.

The rule:
  - What a cell holds of a limit it may count, and no more. Only the cell itself lowers that, before
    it says so; only the bank raises it, as far as the limit is not held by others. What a cell
    said before what it said last is not looked at.
  - It gets what waits there for it and, where something goes on, a part of the rest, so that it
    need not ask each time.
  - A cell that is silent for `lease_s` counts by itself up to its equal part. The bank holds that
    much back for it until it has been silent for `forget_s`; then what it has used of a day or a
    month.

Invariants (each a property test of that name):

1. never_more_than_the_limit: what cells hold together is never more than the limit, while each of
   them is heard, whatever is lost on the way and whoever starts anew.
2. asking_gives_all_there_is: what waits is given, unless others hold what it takes.
3. cut_off_costs_one_part: with k cells of n cut off, what is counted is at most the limit and k
   equal parts of it.

Source: our own. Leases of a shared amount that only their holder may lower are as old as escrow
(O'Neil, *The Escrow Transactional Method*, TODS 1986).
"""

from dataclasses import dataclass, field

from serve_app.cell_messages import Count, Part, Parts, TellLimits

LEASE_S = 5.0
FORGET_S = 600.0


@dataclass
class _Limit:
    held: dict[str, int] = field(default_factory=dict)
    """What each cell may count."""
    used: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)
    """What cells that are gone have used of a day or a month."""
    lasts: bool = False


class LimitBank:
    """All limits of a fleet of cells.

    Args:
        now_s: Time. Nothing is given for `lease_s` from here, while cells say what they hold.
        lease_s: Seconds of silence after which a cell counts by itself.
        forget_s: Seconds of silence after which a cell is gone.
    """

    def __init__(self, now_s: float, lease_s: float = LEASE_S, forget_s: float = FORGET_S) -> None:
        self._opens_s = now_s + lease_s
        self._lease_s = lease_s
        self._forget_s = forget_s
        self._heard_s: dict[str, float] = {}
        self._last: dict[str, tuple[str, int]] = {}
        """Run and turn of what each cell said last."""
        self._limits: dict[str, _Limit] = {}

    def tell(self, told: TellLimits, now_s: float) -> Parts | None:
        """Take how a cell stands; return what it may count from now on.

        What it does not name it holds nothing of. None answers what was overtaken on the way.
        """
        cell = told.cell
        run, turn = self._last.get(cell, ("", 0))
        if run == told.run and told.turn <= turn:
            return None
        self._last[cell] = (told.run, told.turn)
        self._heard_s[cell] = now_s
        self._forget_silent(now_s)
        named = {count.name for count in told.counts}
        for name in [n for n, known in self._limits.items() if cell in known.held]:
            if name not in named:
                self._drop(name, cell)
        parts = [self._give(cell, count, now_s) for count in told.counts]
        return Parts(parts, len(self._heard_s))

    def _give(self, cell: str, count: Count, now_s: float) -> Part:
        known = self._limits.setdefault(count.name, _Limit())
        known.held[cell], known.used[cell] = count.held, count.used
        known.gone.pop(cell, None)
        known.lasts = count.lasts
        others = sum(self._kept_for(c, count, n, now_s) for c, n in known.held.items() if c != cell)
        others += sum(known.gone.values())
        given = self._share_out(count, count.limit - others - count.held, now_s)
        known.held[cell] = count.held + given
        return Part(known.held[cell], others)

    def _share_out(self, count: Count, free: int, now_s: float) -> int:
        if now_s < self._opens_s or free <= 0:
            return 0
        given = min(free, count.wanted)
        if not count.wanted and count.held == count.used:
            return 0  # Nothing goes on there.
        return given + (free - given) // (2 * len(self._heard_s))

    def _kept_for(self, cell: str, count: Count, held: int, now_s: float) -> int:
        """Return what may be counted in another cell, as far as is known."""
        # Half a lease early: its time runs since it asked, here since it was heard.
        is_silent = now_s - self._heard_s[cell] > self._lease_s / 2
        return max(held, count.limit // len(self._heard_s)) if is_silent else held

    def _forget_silent(self, now_s: float) -> None:
        for cell in [c for c, s in self._heard_s.items() if now_s - s > self._forget_s]:
            del self._heard_s[cell], self._last[cell]
            for name in [n for n, known in self._limits.items() if cell in known.held]:
                known = self._limits[name]
                if known.lasts:
                    known.gone[cell] = known.used[cell]
                self._drop(name, cell)

    def _drop(self, name: str, cell: str) -> None:
        known = self._limits[name]
        del known.held[cell], known.used[cell]
        if not known.held and not known.gone:
            del self._limits[name]
