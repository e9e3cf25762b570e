"""Decides which adapters of an engine's batch take no more requests, so that others get a slot.

A batch has a slot for each different adapter in it, and no more than `n_slots`. While busy adapters
hold them all, vLLM passes over whoever needs another one, for ever.

Inputs: how many requests of each adapter run; the adapters that wait, in the order of turns.

The rule:
  - Whose adapter has no slot when all are taken gets a claim, in the order of turns. A claim
    closes one adapter: none of its requests starts, so its slot comes free when the last ends.
  - Closed is an adapter that nobody ahead in turn waits for, of these the one with the fewest
    running requests; ties go to the smaller id. Is there none, it is not the claimant's turn yet.
    It stays closed until what made the claim waits no more, or there is a free slot.
  - No more than half of the slots are closed, at least one. Open adapters go on as before.

Invariants (each a property test of that name):

1. free_slot_closes_nothing: while a slot is free, or nothing lacks one, nothing is closed.
2. half_stays_open: at most half of the slots are closed, or one.
3. claims_last: what is closed stays closed while it runs and its claim waits.
4. first_is_served: whoever is first in turn starts when what ran at that time has ended, or before.
5. nobody_ahead_is_closed: a new claim closes nothing that somebody ahead in turn waits for.
"""

from collections.abc import Iterable, Mapping


class AdapterSlots:
    """The claims to one engine's slots.

    Args:
        n_slots: Different adapters that a batch may have.
    """

    def __init__(self, n_slots: int) -> None:
        self._n_slots = n_slots
        self._claims: dict[int, int] = {}
        """What is closed, by the adapter that claims its slot."""

    @property
    def closed(self) -> set[int]:
        """Adapters whose requests are not to start."""
        return set(self._claims.values())

    def plan(self, running: Mapping[int, int], waiting: Iterable[int]) -> set[int]:
        """Returns which adapters are closed in this step.

        Args:
            running: Requests of each adapter that run; no number is 0.
            waiting: Adapters of requests that wait, in the order of turns; some more than once.
        """
        if len(running) < self._n_slots:
            self._claims.clear()
            return set()
        in_turn = list(dict.fromkeys(waiting))
        self._claims = {
            claimant: closed
            for claimant, closed in self._claims.items()
            if claimant in in_turn and claimant not in running and closed in running
        }
        may_close = set(running) - self.closed
        for adapter in in_turn:
            if not may_close or len(self._claims) >= max(1, self._n_slots // 2):
                break
            if adapter in running:
                may_close.discard(adapter)
            elif adapter not in self._claims:
                closed = min(may_close, key=lambda a: (running[a], a))
                self._claims[adapter] = closed
                may_close.discard(closed)
        return self.closed
