"""A router's dealings with the bank of its cells: what tenants are served here, and elsewhere.

    own service --TellService--> bank --ServedElsewhere--> charged to the tenants' counters here

So a tenant that other cells serve comes after one that only this cell serves, until both have got
the same. What is charged at once is bounded, lest a long past elsewhere keeps anybody waiting here.
"""

import asyncio

from serve_app.bank_link import BankLink
from serve_app.cell_messages import SERVICE_PATH, ServedElsewhere, TellService
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc

_MOST_TENANTS = 50_000


class ServiceExchange:
    """Keeps one domain's counters up to date with other cells.

    Args:
        link: To the bank.
        domain: The router's.
        queue: Whose counters these are.
        most_ahead: Service that nobody is charged beyond the least of those who wait.
        most_tenants: Whose sums are kept. Beyond that it counts anew, as another router would.
    """

    def __init__(
        self,
        link: BankLink,
        domain: str,
        queue: Vtc,
        most_ahead: float,
        most_tenants: int = _MOST_TENANTS,
    ) -> None:
        self._link = link
        self._domain = domain
        self._queue = queue
        self._most_ahead = most_ahead
        self._most_tenants = most_tenants
        self._sums: dict[TenantId, float] = {}
        """What was served here since it last began to count."""
        self._unsaid: set[TenantId] = set()
        """Of whom the bank does not know it yet."""
        self._n_begun = 0
        self._bank, self._heard = "", 0
        self._charged: dict[str, float] = {}
        """Service elsewhere, as far as it is charged or was there before this router."""

    async def run(self) -> None:
        """Exchange until cancelled."""
        try:
            while True:
                await self.exchange()
                await asyncio.sleep(self._link.period_s)
        finally:
            await self._link.close()

    async def exchange(self) -> None:
        """Tell the bank once, and charge what it says."""
        for tenant, service in self._queue.take_served().items():
            self._sums[tenant] = self._sums.get(tenant, 0.0) + service
            self._unsaid.add(tenant)
        if await self._tell():
            await self._tell()  # A first word counts for nothing: before anything is served.

    async def _tell(self) -> bool:
        """Tell the bank what it does not know. Return whether counting begins anew."""
        told = TellService(
            self._link.cell,
            self._domain,
            f"{self._link.run}/{self._n_begun}",
            self._bank,
            self._heard,
            {str(tenant): self._sums[tenant] for tenant in self._unsaid},
        )
        answer = await self._link.ask(SERVICE_PATH, told, ServedElsewhere)
        is_other = answer is not None and self._take(answer)
        if not is_other and len(self._sums) <= self._most_tenants:
            return False
        self._n_begun += 1
        self._sums, self._unsaid = {}, set()
        return True

    def _take(self, answer: ServedElsewhere) -> bool:
        """Charge what is served elsewhere. Return whether it is another bank that says so."""
        self._heard = answer.turn
        if answer.bank != self._bank:
            self._bank, self._charged = answer.bank, dict(answer.served)
            return True
        self._unsaid.clear()
        for tenant, service in answer.served.items():
            self._charge(tenant, service)
        return False

    def _charge(self, tenant: str, service: float) -> None:
        """Charge what is more than ever before: predictions that were too high come back."""
        more = service - self._charged.get(tenant, 0.0)
        if more > 0:
            self._charged[tenant] = service
            self._queue.charge_elsewhere(TenantId(tenant), more, self._most_ahead)
