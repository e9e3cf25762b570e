"""Decides which adapters an engine is handed no more of, so that others get a slot there.

A router hands an engine requests of a bounded number of adapters (`adapters`). While busy ones are
never without a request there, whoever needs another one would wait for ever.

Inputs: how many requests of each adapter are in flight there, which adapter is asked for when it is
a request's turn, and which were asked for before it, that is ahead in turn. Time is passed in.

The rule:
  - An adapter whose request finds a place but no slot claims one. A claim closes one adapter that
    nobody ahead in turn asks for, of these the one with the fewest requests in flight; ties go to
    the smaller id. Its requests go elsewhere or wait, so its slot comes free as its last one ends.
  - No more than half of the slots are closed, at least one.
  - A claim ends when a request with its adapter is handed over, or when nobody has asked for two
    seconds: a claimant that waits is asked about at every decision.

Invariants (each a property test of that name):

1. half_stays_open: at most half of the slots are closed, or one.
2. nobody_ahead_is_closed: a new claim closes nothing that is ahead in turn.
3. least_busy_is_closed: nothing that it may close has fewer requests in flight.
4. claims_end: with the claimant's turn, and soon after nobody claims any more.
5. claimant_is_served: if only what is open is handed over, the claimant has a slot when all that
   ran when it claimed has ended.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

_KEPT_S = 2.0


@dataclass(frozen=True, slots=True)
class _Claim:
    closed: int
    at_s: float


class SlotClaims:
    """The claims to one engine's slots, as its router keeps them."""

    def __init__(self) -> None:
        self._claims: dict[int, _Claim] = {}
        """By claimant."""

    def closed(self, now_s: float) -> Set[int]:
        """Returns the adapters whose requests are not to be handed over."""
        if not self._claims:
            return frozenset()
        self._claims = {
            claimant: claim
            for claimant, claim in self._claims.items()
            if now_s - claim.at_s < _KEPT_S
        }
        return {claim.closed for claim in self._claims.values()}

    def claim(
        self, adapter: int, running: Mapping[int, int], ahead: Set[int], slots: int, now_s: float
    ) -> bool:
        """Claims a slot for an adapter whose request has its turn and finds none.

        Returns:
            Whether another adapter is closed now.

        Args:
            adapter: The claimant.
            running: Requests in flight there by adapter; no number is 0.
            ahead: Adapters that requests before it have asked for.
            slots: Of the engine.
            now_s: The monotonic clock.
        """
        closed = self.closed(now_s)
        known = self._claims.get(adapter)
        if known is not None and known.closed in running:
            self._claims[adapter] = _Claim(known.closed, now_s)
            return False
        self._claims.pop(adapter, None)
        may_close = running.keys() - closed - ahead
        if not may_close or len(self._claims) >= max(1, slots // 2):
            return False
        chosen = min(may_close, key=lambda a: (running[a], a))
        self._claims[adapter] = _Claim(chosen, now_s)
        return True

    def end(self, adapter: int) -> None:
        """A request with it has been handed over."""
        self._claims.pop(adapter, None)
