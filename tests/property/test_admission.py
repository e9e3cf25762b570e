"""Invariants of `serve_app.policy.admission`."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import LimitSettings
from serve_app.policy.admission import QueueView, admit

_LIMITS = st.integers(1, 40).map(lambda n: LimitSettings(max_waiting=n))
_TENANTS = st.sampled_from("abcdefgh")


def _view(waiting: Counter[str], tenant: str) -> QueueView:
    others = sum(1 for name, n in waiting.items() if n and name != tenant)
    return QueueView(waiting.total(), waiting[tenant], others)


@given(_LIMITS, st.lists(st.tuples(_TENANTS, st.booleans()), max_size=300))
def test_queue_is_bounded(limits: LimitSettings, events: list[tuple[str, bool]]) -> None:
    waiting: Counter[str] = Counter()
    for tenant, is_arrival in events:
        if is_arrival and admit(_view(waiting, tenant), limits) is None:
            waiting[tenant] += 1
        elif not is_arrival and waiting[tenant]:
            waiting[tenant] -= 1
        assert waiting.total() <= 2 * limits.max_waiting


@given(_LIMITS, st.data())
def test_no_false_refusal(limits: LimitSettings, data: st.DataObject) -> None:
    n_waiting = data.draw(st.integers(0, limits.max_waiting - 1))
    own = data.draw(st.integers(0, n_waiting))
    others = data.draw(st.integers(0, n_waiting - own))
    assert admit(QueueView(n_waiting, own, others), limits) is None


@given(st.integers(2, 40).map(lambda n: LimitSettings(max_waiting=n)))
def test_full_queue_keeps_its_door_open(limits: LimitSettings) -> None:
    assert admit(QueueView(limits.max_waiting, 0, 1), limits) is None
    assert admit(QueueView(limits.max_waiting, limits.max_waiting, 0), limits) is not None
