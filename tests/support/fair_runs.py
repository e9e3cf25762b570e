"""Words that the tests of fair shares have in common."""

from hypothesis import strategies as st

from serve_app.names import TenantId
from serve_app.policy.fairness_options import MovingAverage, Predictor
from tests.support.batch_engine import BatchEngine

A, B, C = TenantId("a"), TenantId("b"), TenantId("c")

histories = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 30), st.integers(0, 30)),
    min_size=1,
    max_size=60,
)
"""Tenant, prompt tokens and output tokens of requests, one after the other."""


def fresh(predicts: bool) -> Predictor | None:
    """Returns a predictor that has learnt nothing, or none."""
    return MovingAverage() if predicts else None


def share_of(engine: BatchEngine, tenant: str) -> float:
    """Returns a tenant's share of all service."""
    return engine.service[tenant] / sum(engine.service.values())
