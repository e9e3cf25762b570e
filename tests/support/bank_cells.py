"""Cells whose routers tell one bank what they serve, over links in memory."""

from collections import Counter
from typing import TypeVar

import msgspec

from deployments.service_exchange import ServiceExchange
from serve_app.bank_link import BankLink
from serve_app.cell_messages import TellService
from serve_app.names import TenantId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_options import UNITS
from serve_app.policy.service_bank import ServiceBank
from tests.support.batch_engine import always, make_request

_T = TypeVar("_T", bound=msgspec.Struct)


class Fleet:
    """A bank that may be away."""

    def __init__(self, most_tenants: int = 1000) -> None:
        self.most_tenants = most_tenants
        self.bank = ServiceBank("first", most_tenants)
        self.is_away = False


class Queue(Vtc):
    """Notes what is charged for other cells."""

    def __init__(self) -> None:
        super().__init__()
        self.charged: Counter[TenantId] = Counter()

    def charge_elsewhere(self, tenant: TenantId, service: float, most_ahead: float) -> None:
        self.charged[tenant] += round(service)
        super().charge_elsewhere(tenant, service, most_ahead)


class Cell(BankLink):
    """One cell's queue, and its link to the bank."""

    def __init__(self, name: str, fleet: Fleet) -> None:
        self.cell, self.run, self.period_s = name, "1", 1.0
        self.fleet = fleet
        self.queue = Queue()
        self.charged = self.queue.charged
        exchange = ServiceExchange(self, "tiny", self.queue, 1e6, fleet.most_tenants)
        self.exchange = exchange.exchange
        self.most_told = 0
        """Tenants of one message."""
        self._n = 0

    async def ask(self, path: str, question: msgspec.Struct, kind: type[_T]) -> _T | None:
        assert isinstance(question, TellService)
        if self.fleet.is_away:
            return None
        self.most_told = max(self.most_told, len(question.served))
        return msgspec.convert(self.fleet.bank.tell(question), kind)

    def serve(self, tenant: TenantId, tokens: int) -> None:
        """Serves a prompt of so many tokens."""
        self._n += 1
        self.queue.arrive(make_request(f"{tenant}{self._n}", tenant, tokens), 0.0)
        admission = self.queue.admit(always, 0.0)
        assert admission is not None
        self.queue.finish(admission.request.ticket)

    def counter(self, tenant: TenantId) -> float:
        return self.queue.counters().get(tenant, 0) / UNITS
