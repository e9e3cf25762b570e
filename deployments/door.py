"""Who of a router's requests may wait, and who is sent away because waiting leads to nothing."""

from collections.abc import Callable

from deployments.autoscaler import Autoscaler
from deployments.punctuality import Punctuality
from deployments.router_metrics import RefusalKind, RouterMetrics
from deployments.ticket_book import TicketBook
from serve_app.config import Settings
from serve_app.messages import GatewayMail, Leave, Refuse, TicketId
from serve_app.policy.admission import Refusal, admit

_SETTLED_S = 5.0
"""A router that is new hears of engines and requests in any order."""


class Door:
    """Asks the policies, and tells gateways whom they refuse.

    Args:
        tickets: The requests.
        autoscaler: Knows for which models requests wait longer, as those sleep.
        settings: Bounds on waiting, and the models' objectives.
        metrics: Of the router.
        send: Sends a gateway a message.
    """

    def __init__(
        self,
        tickets: TicketBook,
        autoscaler: Autoscaler,
        settings: Settings,
        metrics: RouterMetrics,
        send: Callable[[bytes, GatewayMail], None],
    ) -> None:
        self._tickets = tickets
        self._autoscaler = autoscaler
        self._limits = settings.limits
        self._punctuality = Punctuality(tickets, settings, autoscaler.waited_s)
        self._metrics = metrics
        self._send = send

    def configure(self, settings: Settings) -> None:
        """Takes new bounds; they hold for those who wait, too."""
        self._limits = settings.limits
        self._punctuality.configure(settings)

    def admit(self, ticket: TicketId, n_turns: int, now_s: float) -> None:
        """Lets the newest request wait, of which no engine has room, or refuses it.

        Args:
            ticket: It waits already.
            n_turns: How many requests were handed out so far.
            now_s: The monotonic clock.
        """
        known = self._tickets[ticket]
        queue = self._tickets.view_queue(known.tenant, now_s)
        self._punctuality.note_turns(n_turns, queue.n_waiting, now_s)
        refusal = admit(queue, self._limits)
        if refusal is None:
            refusal = self._punctuality.judge(known.model, known.tenant)
        if refusal is not None:
            self._refuse(ticket, "crowded", refusal)

    def refuse_overdue(self, now_s: float) -> None:
        """Nobody waits for ever."""
        most_s = self._limits.max_wait_s
        shortest_s = self._autoscaler.shortest_patience_s(most_s)
        for ticket, known, _ in self._tickets.waiting_longer_than(shortest_s, now_s):
            overdue = self._autoscaler.find_overdue(known, now_s, most_s)
            if overdue is not None:
                self._refuse(ticket, "overdue", Refusal(overdue, self._limits.retry_after_s))
        self.refuse_late(now_s)

    def refuse_late(self, now_s: float) -> None:
        """Called before places are given, lest one goes to somebody who is too late for it."""
        for ticket, refusal in self._punctuality.find_late(now_s):
            self._refuse(ticket, "overdue", refusal)

    def refuse_outdated(self, now_s: float) -> None:
        """What was read for a model that has been replaced by another has nowhere to go."""
        reason = "The model was replaced by another version while the request waited. Try again."
        for ticket, _ in self._tickets.waiting_left_behind(now_s - _SETTLED_S):
            self._refuse(ticket, "outdated", Refusal(reason, self._limits.retry_after_s))

    def _refuse(self, ticket: TicketId, kind: RefusalKind, refusal: Refusal) -> None:
        known = self._tickets[ticket]
        self._tickets.leave(Leave(ticket))
        self._metrics.refuse(known.model, kind)
        self._send(known.gateway, Refuse(ticket, kind, refusal.reason, refusal.retry_after_s))
