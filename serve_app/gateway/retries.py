"""Whether a request whose engine could not go on with it goes on elsewhere; for one model."""

from dataclasses import replace
from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine import EngineCoreOutput

from serve_app.config import LimitSettings
from serve_app.gateway.tickets import Ticket
from serve_app.policy.retry_budget import RetryBudget
from serve_app.policy.suspicion import may_go_on

_MOST_FAILURES = 4
"""Engines that may fail to run a request, and live. By then the router skips such an engine."""
_NO_RETRIES_LEFT = (
    "The engine that ran this request stopped before it gave a token, and so many do that none is "
    "tried again now (limits.retry_share). Try again later."
)


class Retries:
    """Keeps the budget, and asks the policies.

    Args:
        limits: As they are now; may be replaced.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self.limits = limits
        self._budget = RetryBudget.full(limits.retry_share, limits.retry_reserve)

    def note_request(self) -> None:
        """A request came."""
        share, reserve = self.limits.retry_share, self.limits.retry_reserve
        self._budget = replace(self._budget, share=share, reserve=reserve).with_request()

    def may_try_failed(self, ticket: Ticket, output: EngineCoreOutput) -> bool:
        """Whether another engine may be able to do it: this one does not say why it is not."""
        return (
            not ticket.produced
            and not ticket.has_grammar
            and not isinstance(output.stop_reason, str)
            and ticket.n_failures < _MOST_FAILURES
            and self._budget.allows
        )

    def move(self, ticket: Ticket, *, has_died: bool, has_failed: bool) -> Exception | None:
        """Takes a ticket from its engine; returns what to tell its client if it ends with that.

        Args:
            ticket: Of which an engine has begun at least one run.
            has_died: Whether the engine died. Else it leaves, or has failed.
            has_failed: Whether it lives and could not run the request.
        """
        # One that has tokens goes on; one that nobody had taken costs nothing.
        is_retry = has_failed or (has_died and ticket.is_accepted and not ticket.produced)
        ticket.lose_engine(has_died=has_died)
        ticket.n_failures += has_failed
        limits = self.limits
        most, most_in_all = limits.max_engine_deaths_in_a_row, limits.max_engine_deaths
        if not may_go_on(ticket.record, most, most_in_all):
            return ticket.explain_losses()
        if not is_retry:
            return None
        if not self._budget.allows:
            return GracefulHTTPError(_NO_RETRIES_LEFT, HTTPStatus.SERVICE_UNAVAILABLE)
        self._budget = self._budget.with_retry()
        return None
