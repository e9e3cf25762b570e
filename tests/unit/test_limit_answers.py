import pytest

from serve_app.gateway.limit_answers import describe_refusal, format_duration, limit_headers
from serve_app.ledger_messages import Meter, Refused, Standing
from tests.support.limits import ask_for


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.017, "17ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9991, "1m0s"),
        (360, "6m0s"),
        (90.951, "1m30.951s"),
        (3603, "1h0m3s"),
    ],
)
def test_duration_is_written_as_openai_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_headers_leave_out_what_has_no_limit() -> None:
    names = [name for name, _ in limit_headers(Standing(tokens=Meter(100, 40, 12.0)))]
    assert names == [
        b"x-ratelimit-limit-tokens",
        b"x-ratelimit-remaining-tokens",
        b"x-ratelimit-reset-tokens",
    ]


def test_refusal_names_limit_used_and_requested() -> None:
    ask = ask_for(40, 200)
    refused = Refused(ask.lease, "usd_per_day", "tenant 'acme'", 1.5, 1.25, 0.5, 3600.0, Standing())
    error = describe_refusal(refused, ask)
    assert (error.status, error.code, error.retry_after_s) == (429, "insufficient_quota", 3600.0)
    assert error.message == (
        "The budget usd_per_day of tenant 'acme' is 1.5; 1.25 are used and this request needs "
        "0.5. Try again in 1h0m0s."
    )
