"""Finds the request whose turn it is: by tier, by counter, by room, by nearness.

Changes nothing but the order of lanes while it looks. `fairness` has the rule and its invariants.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from serve_app.messages import TicketId
from serve_app.policy.fairness_options import UNITS, Locality, TierFloor
from serve_app.policy.fairness_ticket import Ticket
from serve_app.policy.fairness_tier import Tier, Turn
from serve_app.policy.turns import Fit, Place


@dataclass(frozen=True, slots=True)
class Choice:
    """Whose turn it is, and where it runs."""

    turn: Turn
    tier: int
    fit: Fit
    refused: tuple[str, ...] = ()
    """Lanes before it that have no room."""
    asked: tuple[tuple[int, float], ...] = ()
    """Tiers in the order in which they were asked, with what each was owed; empty if one waits."""


class Chooser:
    """Chooses among what waits.

    Args:
        tiers: By index, those with the most urgent requests first.
        tickets: All that are known.
        floor: What lower tiers are owed.
        locality: Whom to prefer among those near to the least counter; None prefers nobody.
        passing: Units above one that is too big for the room left up to which others may go first;
            None lets them pass for ever.
    """

    def __init__(
        self,
        tiers: Mapping[int, Tier],
        tickets: Mapping[TicketId, Ticket],
        floor: TierFloor,
        locality: Locality | None,
        passing: int | None,
    ) -> None:
        self._tiers = tiers
        self._tickets = tickets
        self._floor = floor
        self._locality = locality
        self._quantum = 0 if locality is None else round(locality.quantum * UNITS)
        self._passing = passing

    def choose(self, waiting: list[int], place: Place) -> Choice | None:
        """Returns whose turn it is among those that fit.

        Args:
            waiting: Tiers in which somebody waits, in order.
            place: Finds room; asked at most once a lane, and once more a candidate for locality.
        """
        tiers = self._floor.order(waiting) if len(waiting) > 1 else waiting
        for index in tiers:
            choice, is_held = self._choose_in_tier(index, place)
            if choice is not None and len(tiers) > 1:
                asked = tuple((tier, self._floor.owed(tier)) for tier in tiers)
                return replace(choice, asked=asked)
            if choice is not None or is_held:
                return choice
        return None

    def _choose_in_tier(self, index: int, place: Place) -> tuple[Choice | None, bool]:
        """Returns the choice, and whether all have to wait for one that is too big."""
        tier = self._tiers[index]
        refused: list[str] = []
        choice: Choice | None = None
        limit: int | None = None
        is_held = False
        while choice is None and (turn := tier.least()) is not None:
            is_held = limit is not None and turn.account.counter > limit
            if is_held:
                break
            fit = place(self._tickets[turn.ticket].request)
            if not isinstance(fit, Fit):
                if fit is not None and limit is None and self._passing is not None:
                    limit = turn.account.counter + self._passing
                refused.append(turn.lane)
                tier.set_aside(turn.lane)
                continue
            if self._locality is not None:
                turn, fit = self._choose_near(tier, self._locality, turn, fit, place)
            choice = Choice(turn, index, fit, tuple(refused))
        for lane in refused:
            tier.put_back(lane)
        return choice, is_held

    def _choose_near(
        self, tier: Tier, locality: Locality, turn: Turn, fit: Fit, place: Place
    ) -> tuple[Turn, Fit]:
        best, best_fit = turn, fit
        limit = turn.account.counter + self._quantum
        for other in tier.turns_within(limit, locality.max_candidates):
            other_fit = place(self._tickets[other.ticket].request)
            if isinstance(other_fit, Fit) and _nearness(other_fit) > _nearness(best_fit):
                best, best_fit = other, other_fit
        return best, best_fit


def _nearness(fit: Fit) -> tuple[bool, int]:
    return fit.is_loaded, fit.cached_tokens
