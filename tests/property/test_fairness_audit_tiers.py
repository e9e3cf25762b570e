"""The replay of a log knows when tiers took their turns, and when they did not."""

from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from serve_app.messages import EngineId, TicketId
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_audit import Admitted, Record, replay
from serve_app.policy.fairness_options import Share
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Fit

_SHARES = {TenantId(f"tier-{tier}"): Share(tier=tier) for tier in range(3)}
_STEPS = st.lists(st.tuples(st.sampled_from(sorted(_SHARES)), st.integers(1, 400)), max_size=40)


def make_log(steps: Sequence[tuple[TenantId, int]]) -> list[Record]:
    """All wait first; then each is admitted and produces as many tokens as its prompt has."""
    records: list[Record] = []
    queue = Vtc(shares=_SHARES, audit=records.append)
    for i, (tenant, tokens) in enumerate(steps):
        queue.arrive(Waiting(TicketId(f"{i:03}"), tenant, tokens, tokens), float(i))
    while (admission := queue.admit(lambda _: Fit(EngineId("e")), 0.0)) is not None:
        queue.charge(admission.request.ticket, admission.request.prompt_tokens)
        queue.finish(admission.request.ticket)
    return records


@given(_STEPS)
def test_replay_accepts_the_turns_of_tiers(steps: list[tuple[TenantId, int]]) -> None:
    assert replay(make_log(steps)) == []


def _alter(log: Sequence[Record], **changes: object) -> list[Record]:
    """Changes the first admission where several tiers waited."""
    i = next(i for i, r in enumerate(log) if isinstance(r, Admitted) and len(r.asked) > 1)
    return [*log[:i], msgspec.structs.replace(log[i], **changes), *log[i + 1 :]]


_LOG = make_log([(tenant, 100) for tenant in sorted(_SHARES) for _ in range(8)])


def test_replay_finds_a_lower_tier_that_was_asked_first() -> None:
    assert any(
        "order" in text for text in replay(_alter(_LOG, asked=[(1, 0.0), (0, 0.0), (2, 0.0)]))
    )


def test_replay_finds_a_tier_that_claims_more_than_it_earned() -> None:
    log = _alter(_LOG, asked=[(1, 5e6), (0, 0.0), (2, 0.0)])
    assert any("can have earned" in text for text in replay(log))


def test_replay_finds_a_tier_that_was_not_asked() -> None:
    assert any("waited" in text for text in replay(_alter(_LOG, asked=[(0, 0.0), (2, 0.0)])))
