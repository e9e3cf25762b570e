"""Decides whether a request that lost its engine before its first token is tried again.

Inputs: how many requests began and were tried again so far; the configured share and reserve.

The rule: every request that begins earns `share` of a retry, every retry spends one; what is saved
is `reserve` at most, and that much is there at first. So single deaths cost no request, and engines
that die of their load get no more than `share` on top of it. What costs the fleet nothing spends
nothing, and the caller does not ask: a request that its engine had not accepted, or that an engine
moves as it leaves. One that has got tokens goes on in any case: its client has seen them.

Invariants (each a property test of that name):

1. retries_are_a_share: in any stretch, no more are granted than `reserve` and `share` of those that
   began in it.
2. reserve_comes_back: after `reserve / share` requests without a retry all of it is there again.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """What is saved at this moment."""

    share: float
    """Retries that one request earns."""
    reserve: float
    """Most that is saved."""
    saved: float

    @classmethod
    def full(cls, share: float, reserve: float) -> "RetryBudget":
        """As it is at first."""
        return cls(share, reserve, reserve)

    def with_request(self) -> "RetryBudget":
        """A request has begun for the first time."""
        return replace(self, saved=min(self.reserve, self.saved + self.share))

    @property
    def allows(self) -> bool:
        """Whether one more retry may be made."""
        return self.saved >= 1.0

    def with_retry(self) -> "RetryBudget":
        """One was made."""
        return replace(self, saved=self.saved - 1.0)
