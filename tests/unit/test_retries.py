"""Unit tests of `serve_app.gateway.retries`."""

import pytest
from vllm.exceptions import GracefulHTTPError
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

from serve_app.config import LimitSettings
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.retries import Retries
from serve_app.gateway.tickets import Ticket
from serve_app.messages import Endpoint, EngineId, Grant, Standing
from serve_app.names import TenantId
from tests.support.router_post import enqueue

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FAILED = EngineCoreOutput("t", [], finish_reason=FinishReason.ERROR)


class NoSink:
    """Takes nothing."""

    def begin(self, request_id: str) -> None:
        """Hears of a beginning."""

    def take(self, outputs: EngineCoreOutputs) -> None:
        """Hears of outputs."""

    def fail(self, request_id: str, error: Exception) -> None:
        """Hears of an end."""


def start(*, accepted: bool = True, n_tokens: int = 0, has_grammar: bool = False) -> Ticket:
    ticket = Ticket([b""], NoSink(), enqueue("t"), has_grammar)
    standing = Standing(TenantId("a"), 0, 0, 0)
    ticket.start(Grant(ticket.id, EngineId("e"), Endpoint("tcp://e", b"k"), standing))
    ticket.is_accepted = accepted
    ticket.produced = [7] * n_tokens
    return ticket


def make_retries(reserve: int, share: float = 0.0, **limits: int) -> Retries:
    return Retries(LimitSettings(retry_reserve=reserve, retry_share=share, **limits))


def test_death_before_the_first_token_spends_and_is_refused_when_nothing_is_left() -> None:
    retries = make_retries(1)
    assert retries.move(start(), has_died=True, has_failed=False) is None
    end = retries.move(start(), has_died=True, has_failed=False)
    assert isinstance(end, GracefulHTTPError)
    assert "retry_share" in str(end)


@pytest.mark.parametrize(
    "ticket", [start(n_tokens=1), start(accepted=False)], ids=["with tokens", "not accepted"]
)
def test_what_goes_on_or_had_not_begun_spends_nothing(ticket: Ticket) -> None:
    assert make_retries(0).move(ticket, has_died=True, has_failed=False) is None


def test_engine_that_leaves_spends_nothing() -> None:
    assert make_retries(0).move(start(), has_died=False, has_failed=False) is None


def test_requests_earn_retries() -> None:
    retries = make_retries(1, share=0.5)
    assert retries.move(start(), has_died=True, has_failed=False) is None
    for _ in range(2):
        retries.note_request()
    assert retries.move(start(), has_died=True, has_failed=False) is None


def test_new_limits_hold_at_once() -> None:
    retries = make_retries(5)
    retries.limits = LimitSettings(retry_reserve=0, retry_share=0.0)
    retries.note_request()
    assert retries.move(start(), has_died=True, has_failed=False) is not None


def test_request_that_kills_engines_is_told_so_though_there_is_a_budget() -> None:
    retries, ticket = make_retries(100, max_engine_deaths_in_a_row=2), start()
    assert retries.move(ticket, has_died=True, has_failed=False) is None
    ticket.is_accepted = True
    assert isinstance(retries.move(ticket, has_died=True, has_failed=False), ApiError)


def test_failed_request_is_tried_again_unless_it_is_known_to_be_the_reason() -> None:
    retries = make_retries(100)
    assert retries.may_try_failed(start(), FAILED)
    assert not retries.may_try_failed(start(has_grammar=True), FAILED)
    assert not retries.may_try_failed(start(n_tokens=1), FAILED)
    named = EngineCoreOutput("t", [], finish_reason=FinishReason.ERROR, stop_reason="no adapter")
    assert not retries.may_try_failed(start(), named)


def test_failed_request_is_tried_four_times_more_at_most() -> None:
    retries, ticket = make_retries(100), start()
    for _ in range(4):
        assert retries.may_try_failed(ticket, FAILED)
        assert retries.move(ticket, has_died=False, has_failed=True) is None
    assert not retries.may_try_failed(ticket, FAILED)
