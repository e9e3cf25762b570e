"""Keeps a router's objectives for the first token: what would be late is turned away in time."""

from collections.abc import Iterator, Mapping

from deployments.ticket_book import TicketBook
from serve_app.config import Settings
from serve_app.messages import TicketId
from serve_app.names import ModelName, TenantId
from serve_app.policy.admission import Refusal
from serve_app.policy.objective import Pace, Waiters, count_before, lateness_of


class Punctuality:
    """Says who need not wait.

    Args:
        tickets: The requests.
        settings: The models' objectives; those without serve everyone, however late.
    """

    def __init__(self, tickets: TicketBook, settings: Settings) -> None:
        self._tickets = tickets
        self._pace = Pace()
        self._objectives_s: Mapping[ModelName, float] = {}
        self._retry_after_s = 1.0
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Takes new objectives."""
        found = ((model.name, model.ttft_objective_s) for model in settings.models)
        self._objectives_s = {name: limit_s for name, limit_s in found if limit_s is not None}
        self._retry_after_s = settings.limits.retry_after_s

    def note_turns(self, n_turns: int, n_waiting: int, now_s: float) -> None:
        """Hears how many requests were handed out so far, and how many wait."""
        if not n_waiting or not self._objectives_s:
            self._pace.clear()
        else:
            self._pace.note(now_s, n_turns)

    def judge(self, model: ModelName, tenant: TenantId) -> Refusal | None:
        """Returns None to let a tenant's newest request wait, which is counted already."""
        objective_s = self._objectives_s.get(model)
        if objective_s is None:
            return None
        waiters = dict(self._tickets.waiters())
        own = waiters.pop(tenant, Waiters(1))
        n_before = count_before(own, waiters.values())
        late_s = lateness_of(n_before, self._pace.turns_per_s(), objective_s)
        if late_s is None:
            return None
        return Refusal(
            f"About {n_before:.0f} requests go before this one, and the first token should come "
            f"within {objective_s:g} s (ttft_objective_s), which is no longer possible. Try again "
            f"in {max(late_s, self._retry_after_s):.0f} s.",
            max(late_s, self._retry_after_s),
        )

    def find_late(self, now_s: float) -> Iterator[tuple[TicketId, Refusal]]:
        """Yields who has waited until its objective was missed."""
        if not self._objectives_s:
            return
        least_s = min(self._objectives_s.values())
        for ticket, known, waited_s in self._tickets.waiting_longer_than(least_s, now_s):
            objective_s = self._objectives_s.get(known.model)
            if objective_s is not None and waited_s > objective_s and not known.has_run:
                reason = (
                    f"No engine had room for {waited_s:.1f} s, and the first token should have "
                    f"come within {objective_s:g} s (ttft_objective_s). Try again later."
                )
                yield ticket, Refusal(reason, self._retry_after_s)
