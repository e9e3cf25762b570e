"""Measures what is wanted of one model, between two looks of its autoscaler.

Work is counted in tokens of cost, as fairness counts it, so that a prompt token and an output token
add up. What a request will produce is not known before; the mean of those that have ended stands
for it, up to what it may produce.
"""

import math
from collections.abc import Iterable

from deployments.ticket import Ticket
from serve_app.policy.fairness_options import Cost
from serve_app.policy.routing import EngineView
from serve_app.policy.scaling import Look

_MEMORY = 64.0
"""Ended answers that the mean length is over, about."""


class DemandMeter:
    """Counts one model's work.

    Args:
        cost: What a token counts as.
        ttft_target_s: Seconds in which a first token is to come.
    """

    def __init__(self, cost: Cost, ttft_target_s: float) -> None:
        self.ttft_target_s = ttft_target_s
        self.awake_since_s = -math.inf
        """When the model's first engine was seen ready, where it had slept."""
        self._cost = cost
        self._mean_tokens = 0.0
        self._n_ended = 0.0
        self._arrived = self._done = 0.0
        self._n_first = self._n_late = 0

    def note_arrival(self, ticket: Ticket) -> None:
        """Takes a new request."""
        self._arrived += self._work_ahead(ticket)

    def note_tokens(self, ticket: Ticket, n_tokens: int, now_s: float) -> None:
        """Takes tokens that a request has got. Called before the ticket counts them."""
        self._done += self._cost.output * n_tokens
        if ticket.completion_tokens == 0:
            self._done += self._cost.prompt * ticket.prompt_tokens
            self._n_first += 1
            self._n_late += self.waited_s(ticket, now_s) > self.ttft_target_s

    def waited_s(self, ticket: Ticket, now_s: float) -> float:
        """Returns how long a request has been here and its model awake: no load made it sleep."""
        return now_s - max(ticket.since_s, self.awake_since_s)

    def note_end(self, n_tokens: int) -> None:
        """Takes the length of an answer that came to its own end."""
        self._n_ended = min(self._n_ended + 1, _MEMORY)
        self._mean_tokens += (n_tokens - self._mean_tokens) / self._n_ended

    def look(
        self,
        now_s: float,
        tickets: Iterable[Ticket],
        engines: Iterable[tuple[EngineView, float]],
        start_s: float,
    ) -> Look:
        """Returns all of it, and starts anew.

        Args:
            now_s: The monotonic clock.
            tickets: What waits and runs.
            engines: Those that are ready, each with the part of its KV cache that is in use.
            start_s: What an engine took to start.
        """
        known, fills = list(tickets), [_fill(view, kv_usage) for view, kv_usage in engines]
        look = Look(
            now_s,
            arrived=self._arrived,
            done=self._done,
            waiting=sum(self._work_ahead(t) for t in known if t.engine_id is None),
            n_requests=len(known),
            n_ready=len(fills),
            fill=sum(fills),
            n_first_tokens=self._n_first,
            n_late=self._n_late + self._count_overdue(known, now_s),
            start_s=start_s,
        )
        self._arrived = self._done = 0.0
        self._n_first = self._n_late = 0
        return look

    def _count_overdue(self, tickets: list[Ticket], now_s: float) -> int:
        """Whether any request still has no token and should: no first token tells of those."""
        return int(
            any(
                not t.completion_tokens and self.waited_s(t, now_s) > self.ttft_target_s
                for t in tickets
            )
        )

    def _work_ahead(self, ticket: Ticket) -> float:
        expected = min(self._mean_tokens, ticket.max_tokens) if self._n_ended else ticket.max_tokens
        left = max(expected - ticket.completion_tokens, 0.0)
        return self._cost.prompt * ticket.prompt_tokens + self._cost.output * left


def _fill(view: EngineView, kv_usage: float) -> float:
    return min(max(view.in_flight / view.room, kv_usage), 1.0)
