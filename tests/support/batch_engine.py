"""The least model of a batching engine: seats, one token a step, and where the service went."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from serve_app.messages import EngineId, TicketId
from serve_app.names import TenantId
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Fit, TurnOrder

ENGINE = EngineId("engine")


def make_request(
    ticket: str, tenant: str, prompt_tokens: int = 10, max_tokens: int = 10, lane: str = ""
) -> Waiting:
    """Returns a request that waits."""
    return Waiting(TicketId(ticket), TenantId(tenant), prompt_tokens, max_tokens, lane)


def always(request: Waiting) -> Fit | None:
    """Has room for everyone."""
    return Fit(ENGINE)


@dataclass
class BatchEngine:
    """Runs what a turn order admits, one output token of each running request a step."""

    order: TurnOrder
    seats: int = 8
    now_s: float = 0.0
    lengths: dict[TicketId, int] = field(default_factory=dict)
    """True output lengths."""
    running: dict[TicketId, Waiting] = field(default_factory=dict)
    produced: defaultdict[TicketId, int] = field(default_factory=lambda: defaultdict(int))
    service: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    """By tenant: prompt tokens, and twice the output tokens."""
    n_sent: int = 0

    def send(
        self, tenant: str, prompt: int = 10, output: int = 10, limit: int = 0, lane: str = ""
    ) -> TicketId:
        """Lets a request arrive; returns its ticket."""
        self.n_sent += 1
        request = make_request(f"{self.n_sent:06}", tenant, prompt, limit or output, lane)
        self.lengths[request.ticket] = output
        self.order.arrive(request, self.now_s)
        return request.ticket

    def abort(self, ticket: TicketId) -> None:
        """Ends a request early."""
        self.order.abort(ticket)
        self.running.pop(ticket, None)

    def step(self) -> list[TicketId]:
        """Admits what fits, produces a token each; returns what has finished."""
        while (admission := self.order.admit(self._place, self.now_s)) is not None:
            request = admission.request
            self.running[request.ticket] = request
            self.service[request.tenant] += request.prompt_tokens
        finished = []
        for ticket, request in list(self.running.items()):
            self.produced[ticket] += 1
            self.service[request.tenant] += 2
            self.order.charge(ticket, 1)
            if self.produced[ticket] == self.lengths[ticket]:
                self.order.finish(ticket)
                del self.running[ticket]
                finished.append(ticket)
        self.now_s += 0.05
        return finished

    def run(self, steps: int, before_step: Callable[[], None] = lambda: None) -> None:
        """Takes many steps."""
        for _ in range(steps):
            before_step()
            self.step()

    def _place(self, request: Waiting) -> Fit | None:
        return Fit(ENGINE) if len(self.running) < self.seats else None
