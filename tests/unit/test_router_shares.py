"""What a router remembers of tenants that come and go."""

import msgspec
import pytest

from deployments import ticket_book
from deployments.router import Router
from serve_app.config import parse_settings
from serve_app.messages import Leave, Resume, TicketId
from serve_app.names import ModelName, TenantId
from serve_app.policy.fairness_options import Share
from tests.support.router_post import FakeClock, FakeMailbox, enqueue
from tests.support.settings import write_args

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

A, TINY = b"gateway-a", ModelName("tiny")


def make_router() -> Router:
    router = Router(TINY, parse_settings(write_args()), FakeMailbox(), FakeClock())
    router.handle(A, Resume(model=TINY))
    return router


def send(router: Router, tenant: str, weight: float = 1.0, tier: int = 0) -> TicketId:
    mail = msgspec.structs.replace(enqueue(f"of-{tenant}", tenant), weight=weight, tier=tier)
    router.handle(A, mail)
    return mail.ticket


def test_nothing_is_kept_of_a_tenant_like_all_others() -> None:
    router = make_router()
    for i in range(50):
        router.handle(A, Leave(send(router, f"t{i}")))
    assert router._tickets.shares == {}


def test_a_share_changes_with_the_tenants_next_request_and_back() -> None:
    router = make_router()
    for weight, tier in ((2.0, 0), (2.0, 1), (1.0, 0)):
        router.handle(A, Leave(send(router, "big", weight, tier)))
        share = Share(weight, -tier)
        assert router._tickets.share_of(TenantId("big")) == share
        assert router._queue._shares.get(TenantId("big"), Share()) == share
    assert router._tickets.shares == {}


def test_shares_of_those_that_have_nothing_here_are_forgotten_beyond_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ticket_book, "_MOST_SHARES", 5)
    router = make_router()
    send(router, "waiting", 3.0)
    for i in range(50):
        router.handle(A, Leave(send(router, f"t{i}", 2.0)))
        assert len(router._tickets.shares) <= 6
        assert len(router._queue._shares) <= 6
        assert router._tickets.share_of(TenantId("waiting")) == Share(3.0)
        assert router._tickets.share_of(TenantId(f"t{i}")) == Share(2.0)
