"""An engine with adapters on a clock of its own: what a load costs, and what is pushed out.

Memory and slots are the policies' (`adapter_tier`, `adapter_slots`); the rest is as the echo engine
does it, with no message taking time.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from deployments.tier_entry import Adapter
from serve_app.messages import AdapterRef, AdapterReport, EngineReport, TicketId
from serve_app.names import ModelName, TenantId
from serve_app.policy.adapter_slots import AdapterSlots
from serve_app.policy.adapter_tier import choose_victim
from tests.support.router_post import FakeClock, report

_SPARE = 4
"""Requests that an engine wants beyond its batch, as the real one does."""


@dataclass(frozen=True)
class Build:
    """What an engine is like. Times are in seconds."""

    seats: int = 16
    slots: int = 8
    in_memory: int = 32
    step_s: float = 0.05
    load_s: float = 0.1
    floor: int = 0


@dataclass
class _Request:
    ticket: TicketId
    adapter: Adapter
    steps: int


class SimEngine:
    """One engine.

    Args:
        name: Of it.
        model: That it serves.
        build: What it is like.
        clock: Of the simulation.
        on_ended: Called with each request that has ended.
        on_began: Called with each request at its first token.
        on_loaded: Called when an adapter has come into memory.
    """

    def __init__(
        self,
        name: str,
        model: ModelName,
        build: Build,
        clock: FakeClock,
        on_ended: Callable[[TicketId], None],
        on_began: Callable[[TicketId], None],
        on_loaded: Callable[["SimEngine"], None],
    ) -> None:
        self.name = name
        self._model = model
        self._build = build
        self._clock = clock
        self._on_ended = on_ended
        self._on_began = on_began
        self._on_loaded = on_loaded
        self._adapters: dict[int, Adapter] = {}
        self._to_load: deque[Adapter] = deque()
        self._loading: Adapter | None = None
        self._waiting: OrderedDict[TicketId, _Request] = OrderedDict()
        self._running: dict[TicketId, _Request] = {}
        self._turns = AdapterSlots(build.slots)
        self._ends_s = 0.0
        """Of the step or of the load that is under way."""
        self._is_stepping = False
        self.tokens = 0
        self.loads = 0

    def report(self) -> EngineReport:
        """What it says of itself."""
        adapters = AdapterReport(
            self._build.slots,
            self._build.in_memory,
            in_memory=sorted(a.ref.id for a in self._adapters.values() if a.is_held),
            active=sorted({request.adapter.ref.id for request in self._running.values()}),
            coming=sorted(a.ref.id for a in self._adapters.values() if not a.is_held),
        )
        room = self._build.seats + _SPARE
        return report(self.name, max_running=room, model=self._model, adapters=adapters)

    def prepare(self, ref: AdapterRef, tenant: TenantId) -> None:
        """Is to bring an adapter into memory."""
        self._find(ref, tenant).announce(self._clock.now_s)

    def accept(self, ticket: TicketId, ref: AdapterRef, tenant: TenantId, steps: int) -> None:
        """Takes a request."""
        adapter = self._find(ref, tenant)
        adapter.note_use(self._clock.now_s)
        adapter.requests.add(ticket)
        self._waiting[ticket] = _Request(ticket, adapter, steps)

    def _find(self, ref: AdapterRef, tenant: TenantId) -> Adapter:
        if ref.id not in self._adapters:
            self._adapters[ref.id] = Adapter(ref, tenant)
            self._to_load.append(self._adapters[ref.id])
        return self._adapters[ref.id]

    def advance(self) -> None:
        """Does what is due by now."""
        if self._clock.now_s < self._ends_s:
            return
        if self._loading is not None:
            self._end_load(self._loading)
        elif self._is_stepping:
            self._end_step()
        self._is_stepping = False
        if self._begin_load():
            self._ends_s = self._clock.now_s + self._build.load_s
        elif self._begin_step():
            self._is_stepping = True
            self._ends_s = self._clock.now_s + self._build.step_s

    # --- memory ------------------------------------------------------------------------------

    def _begin_load(self) -> bool:
        if not self._to_load or not self._make_room(self._to_load[0]):
            return False
        self._loading = self._to_load.popleft()
        return True

    def _end_load(self, adapter: Adapter) -> None:
        adapter.is_held = True
        adapter.load_s = self._build.load_s
        self._loading = None
        self.loads += 1
        self._on_loaded(self)

    def _make_room(self, newcomer: Adapter) -> bool:
        now_s = self._clock.now_s
        held = [a.view(now_s) for a in self._adapters.values() if a.is_held]
        if len(held) < self._build.in_memory:
            return True
        victim = choose_victim(held, newcomer.tenant, self._build.in_memory, self._build.floor)
        if victim is not None:
            del self._adapters[victim.id]
        return victim is not None

    # --- the batch ---------------------------------------------------------------------------

    def _begin_step(self) -> bool:
        ready = [request for request in self._waiting.values() if request.adapter.is_held]
        running = Counter(request.adapter.ref.id for request in self._running.values())
        closed = self._turns.plan(running, (request.adapter.ref.id for request in ready))
        for request in ready:
            adapter_id = request.adapter.ref.id
            has_slot = adapter_id in running or len(running) < self._build.slots
            if len(self._running) >= self._build.seats or not has_slot or adapter_id in closed:
                continue
            running[adapter_id] += 1
            self._running[request.ticket] = self._waiting.pop(request.ticket)
            self._on_began(request.ticket)
        return bool(self._running)

    def _end_step(self) -> None:
        self.tokens += len(self._running)
        for ticket, request in list(self._running.items()):
            request.steps -= 1
            if not request.steps:
                del self._running[ticket]
                request.adapter.requests.discard(ticket)
                self._on_ended(ticket)
