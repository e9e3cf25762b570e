"""Invariants of `serve_app.policy.retry_budget`."""

import math

from hypothesis import given
from hypothesis import strategies as st

from serve_app.policy.retry_budget import RetryBudget

_SHARE = st.floats(0.01, 1.0)
_RESERVE = st.integers(1, 20)


@given(_SHARE, _RESERVE, st.lists(st.booleans(), max_size=400), st.data())
def test_retries_are_a_share(
    share: float, reserve: int, are_requests: list[bool], data: st.DataObject
) -> None:
    budget, granted = RetryBudget.full(share, reserve), []
    for is_request in are_requests:
        granted.append(not is_request and budget.allows)
        if is_request:
            budget = budget.with_request()
        elif budget.allows:
            budget = budget.with_retry()
        assert 0.0 <= budget.saved <= reserve
    begin = data.draw(st.integers(0, len(are_requests)))
    end = data.draw(st.integers(begin, len(are_requests)))
    n_requests = sum(are_requests[begin:end])
    assert sum(granted[begin:end]) <= reserve + share * n_requests + 1e-6


@given(_SHARE, _RESERVE)
def test_reserve_comes_back(share: float, reserve: int) -> None:
    budget = RetryBudget.full(share, reserve)
    while budget.allows:
        budget = budget.with_retry()
    for _ in range(math.ceil(reserve / share) + 1):
        budget = budget.with_request()
    assert budget == RetryBudget.full(share, reserve)
