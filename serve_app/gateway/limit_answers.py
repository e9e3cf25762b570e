"""How clients hear of limits: OpenAI's headers on every answer, and the text of a refusal."""

import math

from serve_app.gateway.error_body import ApiError
from serve_app.ledger_messages import Meter, Refused, Reserve, Standing

_BUDGETS = ("tokens_per_day", "tokens_per_month", "usd_per_day", "usd_per_month")

Headers = list[tuple[bytes, bytes]]


def limit_headers(standing: Standing) -> Headers:
    """Returns `x-ratelimit-*`; none for what has no limit."""
    return _meter_headers("requests", standing.requests) + _meter_headers("tokens", standing.tokens)


def _meter_headers(what: str, meter: Meter | None) -> Headers:
    if meter is None:
        return []
    return [
        (f"x-ratelimit-limit-{what}".encode(), str(meter.limit).encode()),
        (f"x-ratelimit-remaining-{what}".encode(), str(meter.remaining).encode()),
        (f"x-ratelimit-reset-{what}".encode(), format_duration(meter.reset_s).encode()),
    ]


def format_duration(seconds: float) -> str:
    """Writes a duration as OpenAI does: 0s, 17ms, 1.5s, 6m0s, 1h0m3s. Rounds up to 1 ms."""
    # A float's error is far below a microsecond here and must not make a millisecond of its own.
    ms = math.ceil(round(seconds * 1000, 3))
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest_ms / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def describe_refusal(refused: Refused, ask: Reserve) -> ApiError:
    """Returns the answer to a request that the ledger refused."""
    if refused.retry_after_s is None:
        return _describe_too_large(refused, ask)
    is_budget = refused.limit in _BUDGETS
    spare = "budget" if is_budget else "limit"
    return ApiError(
        429,
        f"The {spare} {refused.limit} of {refused.scope} is {_show(refused.value)}; "
        f"{_show(refused.used)} {'is' if refused.used == 1 else 'are'} used and this request needs "
        f"{_show(refused.requested)}. Try again in {format_duration(refused.retry_after_s)}.",
        code="insufficient_quota" if is_budget else "rate_limit_exceeded",
        retry_after_s=refused.retry_after_s,
    )


def _describe_too_large(refused: Refused, ask: Reserve) -> ApiError:
    """No time makes it fit, so it is no 429: a client would try again in vain."""
    if refused.limit == "max_output_tokens":
        remedy = f"Ask for at most {_show(refused.value)}."
    else:
        asked = "max_tokens" if ask.is_max_tokens_given else "as max_tokens is not given, up to"
        remedy = (
            f"It has {ask.prompt_tokens} prompt tokens and asks for {asked} "
            f"{sum(ask.max_tokens)}. Shorten the prompt, or send a lower max_tokens."
        )
    return ApiError(
        400,
        f"This request alone needs {_show(refused.requested)}, and {refused.limit} of "
        f"{refused.scope} is {_show(refused.value)}. {remedy}",
        param="max_tokens",
        code="request_exceeds_limit",
    )


def _show(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.6f}".rstrip("0")
