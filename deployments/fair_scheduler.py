"""vLLM's scheduler with fair turns: who starts next, and who is preempted.

The router keeps nearly all that waits; an engine holds a few requests beyond its batch, and more
when they are longer than its KV space allows. Those few start here in the order of their tenants'
counters (`serve_app.policy.engine_turns`), and when space runs out the tenant that has got the most
gives way. So it does for an express request, one that the router sent although the batch was full:
before the step is planned, as many are preempted as it needs places and KV blocks, in the way in
which vLLM preempts all when its prefix cache is reset. Everything else stays vLLM's own
(vllm/v1/core/sched/scheduler.py, 0.32).

How vLLM uses its waiting queue in one step: it looks at the first (`peek_request`) and then either
takes it (`pop_request`; its status becomes RUNNING), or skips it (`pop_request`, and at the end of
the step `prepend_requests`), or stops. A preempted one comes back by `prepend_request`. So what a
pop means is known only afterwards, and a request is charged then.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.request import Request, RequestStatus

from deployments.adapter_slots import SlotTurns
from deployments.step_shape import StepShape
from serve_app.messages import Standing, TicketId
from serve_app.names import TenantId
from serve_app.policy.engine_turns import EngineTurns, Rank

_NOBODY = Standing(TenantId(""), 0, 0, 0)
"""Of a request that came without the router, such as vLLM's own warm-up."""


class _Urge:
    """Stands where vLLM keeps a request's priority: the greatest is preempted first.

    It is how the request stands whenever somebody compares, which vLLM does only to choose
    whom to preempt. So it costs nothing in all other steps.
    """

    __slots__ = ("_ticket", "_turns")

    def __init__(self, turns: EngineTurns, ticket: TicketId) -> None:
        self._turns = turns
        self._ticket = ticket

    @property
    def rank(self) -> Rank:
        return self._turns.rank_of(self._ticket)

    def __lt__(self, other: "_Urge") -> bool:
        return self.rank < other.rank

    def __gt__(self, other: "_Urge") -> bool:
        return self.rank > other.rank


class FairQueue(RequestQueue):
    """Waiting requests in the order of `EngineTurns`, as vLLM's scheduler wants them."""

    def __init__(self) -> None:
        self._turns = EngineTurns()
        self._standings: dict[str, Standing] = {}
        """Of requests on their way from the engine's own thread."""
        self._requests: dict[TicketId, Request] = {}
        """Those that wait or are taken aside."""
        self._aside: dict[TicketId, Request] = {}
        """Popped in this step: it is not known yet what for."""
        self._next: TicketId | None = None
        """What `peek_request` found, while nothing has changed."""

    def introduce(self, request_id: str, standing: Standing) -> None:
        """Says whose a request is, before it comes. May be called from another thread."""
        self._standings[request_id] = standing

    def synchronise(self, counters: Mapping[TenantId, int]) -> None:
        """Takes the router's counters."""
        self._next = None
        self._turns.synchronise(counters)

    def settle(self, *, is_step_over: bool) -> None:
        """Charges what was popped and has started. What is left at a step's end has, too."""
        for ticket, request in list(self._aside.items()):
            if is_step_over or request.status == RequestStatus.RUNNING:
                del self._aside[ticket], self._requests[ticket]
                self._turns.start(ticket)
                self._next = None

    def forget(self, request_id: str) -> None:
        """Takes note that a request has ended; vLLM may free it before it takes it out."""
        ticket = TicketId(request_id)
        self._standings.pop(request_id, None)
        if self._requests.pop(ticket, None) is not None:
            self._turns.take(ticket)
        self._turns.end(ticket)
        self._next = None

    @property
    def n_tenants(self) -> int:
        """How many tenants have something in the engine."""
        return self._turns.n_tenants

    # --- express requests --------------------------------------------------------------------

    def waiting_express(self) -> list[Request]:
        """Returns the express requests that wait, in the order of their turns."""
        return [self._requests[ticket] for ticket in self._turns.waiting_express()]

    def choose_yielding(self, newcomer: Request) -> TicketId | None:
        """Returns which running request gives its place to an express one; None when none can."""
        return self._turns.choose_yielding(TicketId(newcomer.request_id))

    def give_place(self, ticket: TicketId) -> None:
        """Takes note that a running request is preempted for an express one."""
        self._turns.give_place(ticket)

    # --- vLLM's interface --------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Lets a request wait."""
        ticket = TicketId(request.request_id)
        self._next = None
        self._requests[ticket] = request
        if ticket in self._turns:  # A session that goes on has its standing.
            self._turns.put_back(ticket)
        else:
            self._turns.arrive(ticket, self._standings.pop(ticket, _NOBODY))
            request.priority = _Urge(self._turns, ticket)  # type: ignore[assignment]  # see there

    def peek_request(self) -> Request:
        """Returns the request whose turn it is."""
        if self._aside:
            self.settle(is_step_over=False)
        if self._next is None:
            self._next = self._turns.next()
        if self._next is None:
            raise IndexError("peek from an empty queue")
        return self._requests[self._next]

    def pop_request(self) -> Request:
        """Takes out the request whose turn it is, to start or to skip it."""
        request = self.peek_request()
        ticket = TicketId(request.request_id)
        self._turns.take(ticket)
        self._aside[ticket] = request
        self._next = None
        return request

    def prepend_request(self, request: Request) -> None:
        """Lets a preempted request wait again."""
        ticket = TicketId(request.request_id)
        if self._aside.pop(ticket, None) is not None:
            self._turns.start(ticket)
        self._requests[ticket] = request
        self._turns.put_back(ticket)
        self._next = None

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Lets requests that were skipped wait where they did."""
        for request in requests:
            ticket = TicketId(request.request_id)
            del self._aside[ticket]
            self._turns.put_back(ticket)
        self._next = None

    def remove_request(self, request: Request) -> None:
        """Takes out a request that is to wait no longer."""
        self.remove_requests([request])

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Takes out requests that are to wait no longer; those that do not wait here are passed."""
        for request in requests:
            ticket = TicketId(request.request_id)
            if self._requests.pop(ticket, None) is not None:
                self._turns.take(ticket)
        self._next = None

    def __bool__(self) -> bool:
        return len(self._requests) > len(self._aside)

    def __len__(self) -> int:
        return len(self._requests) - len(self._aside)

    def __iter__(self) -> Iterator[Request]:
        return (self._requests[ticket] for ticket in self._turns)


class FairTurns(Scheduler):
    """What both of vLLM's schedulers need to take fair turns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fair_queue = self.waiting = FairQueue()
        # Only the choice of whom to preempt depends on it: the greatest `priority`.
        self.policy = SchedulingPolicy.PRIORITY
        self.shape = StepShape(self)
        self._told: Mapping[TenantId, int] | None = None
        self._slots = SlotTurns(self.vllm_config)

    def introduce(self, request_id: str, standing: Standing) -> None:
        """Says whose a request is, before it comes. May be called from another thread."""
        self.fair_queue.introduce(request_id, standing)

    def tell(self, counters: Mapping[TenantId, int]) -> None:
        """Takes the router's counters for the next step. May be called from another thread."""
        self._told = counters

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Plans one step."""
        told, self._told = self._told, None
        if told is not None:
            self.fair_queue.synchronise(told)
        self._slots.plan(self.running, self.fair_queue)
        # Nobody yields to one that could not start, for want of a slot for its adapter.
        express = [r for r in self.fair_queue.waiting_express() if self._slots.may_start(r)]
        if express:
            self._make_room(express)
        with self.shape.kept(express, self.fair_queue.n_tenants):
            output = super().schedule(*args, **kwargs)
        self.fair_queue.settle(is_step_over=True)
        self._note_begun(output)
        return output

    def _note_begun(self, output: SchedulerOutput) -> None:
        """Has the first output of a request say when it began; vLLM does so with its statistics."""
        if self.log_stats or not output.scheduled_new_reqs:
            return
        now_s = time.monotonic()
        for begun in output.scheduled_new_reqs:
            self.requests[begun.req_id].record_event(EngineCoreEventType.SCHEDULED, now_s)

    def _make_room(self, express: Sequence[Request]) -> None:
        """Preempts what has to yield so that these can start in the step that comes."""
        n_blocks = 0
        for n_places, newcomer in enumerate(express, 1):
            n_blocks += cdiv(newcomer.num_tokens, self.block_size) + 1
            while not self._has_room(n_places, n_blocks):
                ticket = self.fair_queue.choose_yielding(newcomer)
                if ticket is None or not self._yield_place(ticket):
                    return

    def _has_room(self, n_places: int, n_blocks: int) -> bool:
        n_taken = len(self.running) + self.num_waiting_for_streaming_input
        n_free_blocks = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return n_taken + n_places <= self.max_num_active_reqs and n_blocks <= n_free_blocks

    def _yield_place(self, ticket: TicketId) -> bool:
        request = self.requests[ticket]
        if request not in self.running or not self._request_blocks_can_be_freed(request):
            return False
        self.running.remove(request)
        self.fair_queue.give_place(ticket)
        self._preempt_request(
            request, time.monotonic(), drop_stale_output=self.requires_kv_delivery
        )
        return True

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return not self._slots.is_closed(request) and super()._handle_blocked_waiting_request(
            request
        )

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self.fair_queue.forget(request.request_id)
        return super()._free_request(request, *args, **kwargs)


class FairScheduler(FairTurns, AsyncScheduler):
    """vLLM's scheduler that plans a step while the one before it still runs."""


class FairSyncScheduler(FairTurns):
    """vLLM's scheduler where the above is not possible."""
