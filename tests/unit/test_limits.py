from serve_app.ledger_messages import Granted, Progress, Refused, Usage
from serve_app.policy.leases import LeaseBook, Scope
from serve_app.policy.limits import Limiter
from tests.support.limits import ACME, ask_for, limit_acme

NOW_S = 1_800_000_000.0


def make(reserves: str = "max_tokens", **limits: int) -> tuple[Limiter, LeaseBook]:
    book = LeaseBook(30.0)
    source = limit_acme(**limits)
    if reserves == "predicted":
        return Limiter(source, book, "predicted"), book
    return Limiter(source, book), book


def test_predicted_lengths_admit_more_and_overrun_by_what_they_were_too_short() -> None:
    limiter, book = make("predicted", total_tokens_per_min=1000)
    first = ask_for(10, 90)
    limiter.reserve(first, NOW_S)
    book.settle(first.lease, Usage(10, 10), NOW_S)
    asks = [ask_for(10, 90) for _ in range(60)]
    granted = [a for a in asks if isinstance(limiter.reserve(a, NOW_S)[0], Granted)]
    assert len(granted) == (1000 - 20) // 20
    for ask in granted:
        book.renew(ask.lease, Usage(10, 50), NOW_S)
    # What is beyond the prediction counts as soon as it is known: nobody else gets in.
    used = book.account(Scope(ACME)).minute.tokens
    assert used == 20 + len(granted) * 60
    assert used - 1000 <= len(granted) * (90 - 10)
    assert isinstance(limiter.reserve(ask_for(1, 1), NOW_S)[0], Refused)


def test_lease_that_no_journal_knew_is_charged_once() -> None:
    limiter, book = make(total_tokens_per_min=100)
    progress = Progress(ask_for(10, 50), Usage(10, 7))
    assert limiter.announce(progress, NOW_S) is not None
    assert limiter.announce(progress, NOW_S + 1) is None
    assert book.account(Scope(ACME)).minute.tokens == 60
    assert book.expire(NOW_S + 60)[0][1].tokens == 17


def test_several_limits_in_the_way_name_the_one_that_lasts_longest() -> None:
    limiter, _ = make(requests_per_min=1, tokens_per_day=25)
    limiter.reserve(ask_for(10, 10), NOW_S)
    refused, _ = limiter.reserve(ask_for(10, 10), NOW_S)
    assert isinstance(refused, Refused)
    assert refused.limit == "tokens_per_day"
    assert refused.retry_after_s is not None
    assert refused.retry_after_s > 60


def test_limit_that_is_lowered_holds_from_then_on() -> None:
    limiter, book = make(total_tokens_per_min=100)
    limiter.reserve(ask_for(50, 40), NOW_S)
    lower = Limiter(limit_acme(total_tokens_per_min=50), book)
    refused, _ = lower.reserve(ask_for(10, 10), NOW_S + 10)
    assert isinstance(refused, Refused)
    assert (refused.used, refused.value) == (90, 50)
    assert refused.standing.tokens is not None
    assert refused.standing.tokens.remaining == 0
