"""Orders to compare the fair one with. They are not for use.

  - `FirstCome`: first come, first served, whoever it is. Who only lacks room holds up the rest.
  - `least_counter_first`: VTC without the lift, so that who was away catches up at others' cost.
  - `RoundRobin`: one request of each tenant in turn, however long.
  - `RequestCap`: first come, first served, and no more requests of a tenant in a minute than a cap.
  - `OneLine`, `ByRequest`: first come, first served, and turns by request, as a `Vtc` that is blind
    to tenants or to lengths. So they do all that the router asks of its queue.

Invariants (each a property test of that name):

1. baselines_keep_every_request: what arrives is refused at once, or admitted or aborted just once.
2. cap_is_kept: in no minute of the clock does `RequestCap` let more in than its cap.

Source: what Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, compare with.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from serve_app.messages import TicketId
from serve_app.names import TenantId
from serve_app.policy.admission import Refusal
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_options import Cost
from serve_app.policy.fairness_settings import VtcSettings
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Admission, Later, Place

_MINUTE_S = 60.0
_EVERYBODY = TenantId("")


def least_counter_first() -> Vtc:
    """Returns VTC without the lift."""
    return Vtc(VtcSettings(lifts=False))


class OneLine(Vtc):
    """First come, first served: to it, all requests are one tenant's."""

    def arrive(self, request: Waiting, now_s: float) -> Refusal | None:
        """Lets a request wait at the end."""
        return super().arrive(replace(request, tenant=_EVERYBODY), now_s)

    def charge_load(self, tenant: TenantId, model: str, n_tokens: float) -> None:
        """Changes nobody's turn."""


class ByRequest(Vtc):
    """Counts requests in place of tokens: to it, all are as long as each other."""

    def __init__(self) -> None:
        super().__init__(VtcSettings(cost=Cost(prompt=1.0, cached=1.0, output=0.0)))

    def arrive(self, request: Waiting, now_s: float) -> Refusal | None:
        """Lets a request wait in its tenant's line."""
        return super().arrive(replace(request, prompt_tokens=1), now_s)


class FirstCome:
    """First come, first served; those who do not fit are passed by."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[TicketId, Waiting] = OrderedDict()
        self._running: dict[TicketId, Waiting] = {}

    def arrive(self, request: Waiting, now_s: float) -> Refusal | None:
        """Lets a request wait at the end."""
        self._waiting[request.ticket] = request
        return None

    def admit(self, place: Place, now_s: float) -> Admission | None:
        """Takes out the first request that fits."""
        refused: set[str] = set()
        for request in self._in_order():
            if request.lane in refused:
                continue
            fit = place(request)
            if isinstance(fit, Later):
                return None
            if fit is not None:
                self._take(request)
                return Admission(request, fit, "it was first")
            refused.add(request.lane)
        return None

    def charge(self, ticket: TicketId, n_tokens: int) -> None:
        """Tokens do not count here."""

    def finish(self, ticket: TicketId, cached_tokens: int | None = None) -> None:
        """Forgets a running request."""
        self._running.pop(ticket, None)

    def abort(
        self, ticket: TicketId, cached_tokens: int | None = None, *, is_computed: bool = True
    ) -> bool:
        """Forgets a request."""
        is_known = ticket in self._running or ticket in self._waiting
        self._running.pop(ticket, None)
        self._waiting.pop(ticket, None)
        return is_known

    def requeue(self, ticket: TicketId) -> None:
        """Puts a running request back to the front."""
        self._waiting[ticket] = self._running.pop(ticket)
        self._waiting.move_to_end(ticket, last=False)

    def __len__(self) -> int:
        return len(self._waiting)

    def _in_order(self) -> Iterator[Waiting]:
        return iter(self._waiting.values())

    def _take(self, request: Waiting) -> None:
        self._running[request.ticket] = self._waiting.pop(request.ticket)


class RoundRobin(FirstCome):
    """One request of each waiting tenant in turn: who was served longest ago is next."""

    def __init__(self) -> None:
        super().__init__()
        self._turns: dict[TenantId, int] = {}
        self._n_turns = 0

    def _in_order(self) -> Iterator[Waiting]:
        by_tenant: dict[TenantId, list[Waiting]] = {}
        for request in self._waiting.values():
            by_tenant.setdefault(request.tenant, []).append(request)
        for tenant in sorted(by_tenant, key=lambda t: (self._turns.get(t, 0), t)):
            yield from by_tenant[tenant]

    def _take(self, request: Waiting) -> None:
        super()._take(request)
        self._n_turns += 1
        self._turns[request.tenant] = self._n_turns


class RequestCap(FirstCome):
    """First come, first served, with a cap on each tenant's requests a minute.

    Args:
        requests_per_minute: One more in the same minute of the clock is refused.
    """

    def __init__(self, requests_per_minute: int) -> None:
        super().__init__()
        self._cap = requests_per_minute
        self._minute = -1
        self._counts: dict[TenantId, int] = {}

    def arrive(self, request: Waiting, now_s: float) -> Refusal | None:
        """Refuses a request above the cap."""
        minute = int(now_s // _MINUTE_S)
        if minute != self._minute:
            self._minute, self._counts = minute, {}
        count = self._counts.get(request.tenant, 0)
        if count >= self._cap:
            wait_s = (minute + 1) * _MINUTE_S - now_s
            reason = f"{count} requests in this minute, the limit. Try again in {wait_s:.0f} s."
            return Refusal(reason, wait_s)
        self._counts[request.tenant] = count + 1
        return super().arrive(request, now_s)
