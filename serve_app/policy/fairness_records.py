"""Puts what a fair queue does into records, which `fairness_audit` checks."""

from serve_app.policy.fairness_audit import Admitted, Arrived, Opened
from serve_app.policy.fairness_choice import Choice
from serve_app.policy.fairness_options import TierFloor
from serve_app.policy.fairness_settings import VtcSettings, to_units
from serve_app.policy.fairness_ticket import Ticket
from serve_app.policy.turns import Fit


def tell_opened(settings: VtcSettings, floor: TierFloor) -> Opened:
    """Returns the first record of a log."""
    locality = settings.locality
    return Opened(
        quantum_units=0 if locality is None else to_units(locality.quantum),
        burst_units=to_units(settings.burst),
        max_credit_units=None if settings.max_credit is None else to_units(settings.max_credit),
        floor=floor.floor,
        cap_units=floor.cap_units,
    )


def tell_arrival(ticket: Ticket, now_s: float) -> Arrived:
    """Returns the record of a request that has come."""
    request, rates = ticket.request, ticket.rates
    return Arrived(
        request.ticket,
        request.tenant,
        ticket.tier,
        request.lane,
        request.prompt_tokens,
        (rates.prompt, rates.cached, rates.output),
        ticket.account.counter,
        now_s,
    )


def tell_admission(ticket: Ticket, choice: Choice, now_s: float) -> Admitted:
    """Returns the record of a request that is let in for the first time."""
    return _admitted(ticket, choice.fit, choice, now_s)


def tell_resumption(ticket: Ticket, fit: Fit, now_s: float) -> Admitted:
    """Returns the record of a request that goes on after it had lost its engine."""
    return _admitted(ticket, fit, None, now_s)


def _admitted(ticket: Ticket, fit: Fit, choice: Choice | None, now_s: float) -> Admitted:
    return Admitted(
        ticket.request.ticket,
        fit.engine_id,
        ticket.cached_tokens,
        ticket.predicted_tokens,
        [] if choice is None else list(choice.refused),
        ticket.account.counter,
        choice is None,
        now_s,
        [] if choice is None else list(choice.asked),
    )
