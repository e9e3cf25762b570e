"""Decides for how long an on-demand node waits for what clouds answer to launches of spot nodes.

Inputs: how long the last spot launches took until a cloud had them, and how many were refused; what
the on-demand nodes would cost, and what being without them costs.

The rule:
  - Asked for at once, they are paid for until spot nodes come, and for a minute at least.
  - Asked for after a wait, they serve later by that wait, where spot is refused.
  - The wait whose expected price is least is taken: none, or one of those that answers took lately.

Invariants:
  1. unknown_clouds_are_asked_once: without an answer so far they wait for the next look, no longer.
  2. no_wait_is_cheaper: no other wait, nor none, is expected to cost less.
  3. refusals_shorten: a further refusal never lengthens the wait.
  4. urgency_shortens: what costs more to be without never waits longer.

Source: the newsvendor's rule, over the answers seen; the chance of a refusal is Laplace's.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.policy.fleet import Node, NodeId

Answer = float | None
"""Seconds from a launch until its cloud had the node; None for a refusal."""
_REMEMBERED = 20


@dataclass(frozen=True)
class Fallback:
    """On-demand nodes that spot nodes may make needless.

    Attributes:
        usd_per_h: Their price.
        averted_usd_per_h: The expected price of being without them.
        paid_s: What a node is paid for at least.
    """

    usd_per_h: float
    averted_usd_per_h: float
    paid_s: float


def choose_wait_s(answers: Sequence[Answer], fallback: Fallback) -> float | None:
    """Return for how long to wait; None where it does not pay to wait at all."""
    if not answers:
        return 0.0
    best, least = None, expected_usd(None, answers, fallback)
    for wait_s in sorted({answer for answer in answers if answer is not None}):
        usd = expected_usd(wait_s, answers, fallback)
        if usd < least - 1e-12:
            best, least = wait_s, usd
    return best


def expected_usd(wait_s: float | None, answers: Sequence[Answer], fallback: Fallback) -> float:
    """Return what a wait is expected to cost."""
    took_s = [answer for answer in answers if answer is not None]
    refused = (len(answers) - len(took_s) + 1) / (len(answers) + 2)
    late_s = took_s if wait_s is None else [took - wait_s for took in took_s if took > wait_s]
    needless_s = sum(max(fallback.paid_s, late) for late in late_s) / max(1, len(took_s))
    delay_s = wait_s or 0.0
    needless_usd = (1.0 - refused) * needless_s * fallback.usd_per_h
    return (needless_usd + refused * delay_s * fallback.averted_usd_per_h) / 3600.0


class Answers:
    """The last answers, and since when a fallback waits for one."""

    def __init__(self) -> None:
        self._last: deque[Answer] = deque(maxlen=_REMEMBERED)
        self._asked: frozenset[NodeId] = frozenset()
        self._counted: frozenset[NodeId] = frozenset()
        self._looked_s = math.inf
        self._since_s: float | None = None

    def refuse(self) -> None:
        """Note a refusal."""
        self._last.append(None)

    def see(self, nodes: Iterable[Node], now_s: float) -> None:
        """Note which spot nodes have been confirmed since the last look."""
        spot = [node for node in nodes if node.market == "spot"]
        confirmed = [node for node in spot if node.is_confirmed]
        for node in confirmed:
            # What has been there for long when it is first seen was asked for by somebody else.
            is_new = node.id in self._asked or node.started_s >= self._looked_s
            if is_new and node.id not in self._counted:
                self._last.append(max(0.0, now_s - node.started_s))
        self._counted = frozenset(node.id for node in confirmed)
        self._asked = frozenset(node.id for node in spot) - self._counted
        self._looked_s = now_s

    def is_awaited(self, fallback: Fallback | None, now_s: float) -> bool:
        """Say whether a fallback is to wait on; None where nothing hangs on an answer."""
        if fallback is None:
            self._since_s = None
            return False
        self._since_s = now_s if self._since_s is None else self._since_s
        wait_s = choose_wait_s(tuple(self._last), fallback)
        return wait_s is not None and now_s - self._since_s <= wait_s
