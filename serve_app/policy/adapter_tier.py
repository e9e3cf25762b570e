"""Decides which adapter leaves an engine's host memory when another must come in.

Inputs: what the memory holds, whose each adapter is, what runs; whose the newcomer is.

The rule:
  - What a request uses stays. So do as many of each tenant's adapters as the floor says, unless the
    newcomer is that same tenant's. A floor that the tenants there cannot all have is lowered.
  - Of the rest, the one goes whose loss costs least: how often it was asked for of late, times what
    a load of it takes. Ties go to what was used longest ago, then to the smaller id.
  - What was loaded ahead of its request, which has not come yet, goes last.

Invariants (each a property test of that name):

1. in_use_stays: an adapter that a request uses is never chosen.
2. floor_is_kept: another tenant than the newcomer's never falls below the floor.
3. least_worth_goes: nothing that may go is worth less than what goes.
4. somebody_goes: when nothing is in use and the memory is full, something goes.
5. ahead_goes_last: nothing loaded ahead of its request goes while anything else may.

Source: the product of frequency and cost is that of Cherkasova, *Improving WWW Proxies Performance
with Greedy-Dual-Size-Frequency Caching*, HP Labs, 1998, where all are of one size.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from serve_app.names import TenantId

KEPT_AHEAD_S = 10.0
"""For how long an adapter that was loaded ahead of its request is kept for it. Who waits longer for
its turn has it loaded anew; who hangs up keeps others' out of memory for no longer."""


@dataclass(frozen=True, slots=True)
class Held:
    """An adapter in host memory."""

    id: int
    tenant: TenantId
    """Whose request brought it."""
    n_using: int
    """Requests here that use it, or wait for a place in the batch."""
    uses: float
    """How often it was asked for, older times counting less."""
    load_s: float
    """What bringing it took."""
    used_s: float
    """When it was asked for last."""
    is_ahead: bool = False
    """Whether it was loaded for a request that has not come yet."""

    @property
    def worth(self) -> tuple[bool, float, float, int]:
        """The least goes first."""
        return self.is_ahead, self.uses * self.load_s, self.used_s, self.id


def choose_victim(
    held: Collection[Held], newcomer: TenantId, capacity: int, floor: int
) -> Held | None:
    """Returns what makes room for an adapter of `newcomer`; None when all must stay.

    Args:
        held: All of the memory, which is full.
        newcomer: Whose adapter is to come in.
        capacity: Adapters that the memory holds.
        floor: Adapters that others leave to each tenant.
    """
    counts = Counter(adapter.tenant for adapter in held)
    floor = min(floor, capacity // len(counts.keys() | {newcomer}))
    may_go = [
        adapter
        for adapter in held
        if adapter.n_using == 0 and (adapter.tenant == newcomer or counts[adapter.tenant] > floor)
    ]
    return min(may_go, key=lambda adapter: adapter.worth, default=None)
