"""Which limits there are, and what each counts."""

from typing import NamedTuple

from serve_app.policy.usage_counts import Measure, Span

PICO = 10**12


class Rate(NamedTuple):
    """A limit on what is used in a minute."""

    limit: str
    measure: Measure


class Budget(NamedTuple):
    """A limit on what is used in a day or a month."""

    limit: str
    span: Span
    measure: Measure
    units: int
    """Counted units in one unit of the limit."""


RATES = (
    Rate("requests_per_min", lambda c: c.requests),
    Rate("prompt_tokens_per_min", lambda c: c.prompt_tokens),
    Rate("completion_tokens_per_min", lambda c: c.completion_tokens),
    Rate("total_tokens_per_min", lambda c: c.tokens),
)
REQUEST_RATES, TOKEN_RATES = RATES[:1], RATES[1:]
BUDGETS = (
    Budget("tokens_per_day", "day", lambda c: c.tokens, 1),
    Budget("tokens_per_month", "month", lambda c: c.tokens, 1),
    Budget("usd_per_day", "day", lambda c: c.pico_usd, PICO),
    Budget("usd_per_month", "month", lambda c: c.pico_usd, PICO),
)
