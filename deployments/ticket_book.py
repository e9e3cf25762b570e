"""A router's tickets: whose they are, where they run, what they still owe.

Keeps the queue, the engines' bookkeeping and the gateways' lists in step: a ticket is in all of
them or in none. It sends nothing and chooses nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from deployments.adapter_farewell import AdapterFarewell
from deployments.fleet import Fleet
from deployments.known_engine import Handed
from deployments.router_state import RouterState, SavedRun
from deployments.ticket import Gateway, Ticket
from serve_app.messages import (
    EngineId,
    Enqueue,
    Leave,
    Progress,
    Resume,
    RunningTicket,
    TicketId,
)
from serve_app.names import ModelName, TenantId
from serve_app.policy.admission import Pace, QueueView
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_figures import Longest
from serve_app.policy.fairness_options import Share
from serve_app.policy.objective import Waiters
from serve_app.policy.queueing import Waiting

_DEFAULT_SHARE = Share()
_MOST_SHARES = 20_000
"""Beyond that those are forgotten who have nothing here; their next request says it again."""


class TicketBook:
    """The tickets of one router.

    Args:
        queue: Knows whose turn it is, and what each tenant owes.
        fleet: Knows what each engine runs.
        farewell: Knows which adapters requests need.
    """

    def __init__(self, queue: Vtc, fleet: Fleet, farewell: AdapterFarewell) -> None:
        self._queue = queue
        self._fleet = fleet
        self._farewell = farewell
        self._tickets: dict[TicketId, Ticket] = {}
        self.gateways: dict[bytes, Gateway] = {}
        """By the identity of their connection."""
        self.shares: dict[TenantId, Share] = {}
        """What tenants are entitled to, where it is not what all others are."""
        self.longest = Longest()
        """The most that was asked so far."""
        self._n_waiting: Counter[TenantId] = Counter()
        """By tenant; those with none are left out."""
        self._n_waiting_of: Counter[ModelName] = Counter()
        self._pace = Pace()

    def __contains__(self, ticket: TicketId) -> bool:
        return ticket in self._tickets

    def __getitem__(self, ticket: TicketId) -> Ticket:
        return self._tickets[ticket]

    # --- what others may see ----------------------------------------------------------------

    def find(self, ticket: TicketId) -> Ticket | None:
        """Returns a ticket, if it is known."""
        return self._tickets.get(ticket)

    def tickets_of(self, model: ModelName) -> Iterator[Ticket]:
        """Yields what waits and runs of a model."""
        return (known for known in self._tickets.values() if known.model == model)

    def n_waiting(self, tenant: TenantId) -> int:
        """Returns how many requests of a tenant wait."""
        return self._n_waiting[tenant]

    @property
    def waiting_by_tenant(self) -> Mapping[TenantId, int]:
        """How many requests of each tenant wait, of those that have some."""
        return self._n_waiting

    def n_waiting_of(self, model: ModelName) -> int:
        """Returns how many requests for a model wait."""
        return self._n_waiting_of[model]

    def waiters(self) -> Iterator[tuple[TenantId, Waiters]]:
        """Yields what each tenant has waiting."""
        for tenant, n in self._n_waiting.items():
            share = self.share_of(tenant)
            yield tenant, Waiters(n, share.weight, share.tier)

    def share_of(self, tenant: TenantId) -> Share:
        """Returns what a tenant is entitled to."""
        return self.shares.get(tenant, _DEFAULT_SHARE)

    def view_queue(self, tenant: TenantId, now_s: float) -> QueueView:
        """Returns the queue without this tenant's newest request, which asks to join."""
        own = self._n_waiting[tenant]
        others = len(self._n_waiting) - 1
        # Models of one domain share turns and not engines: the pace of one says nothing of others.
        pace = self._pace.turns_per_s(now_s) if len(self._n_waiting_of) == 1 else None
        return QueueView(self._n_waiting.total() - 1, own - 1, others, pace)

    def running_on(self, engine_id: EngineId) -> Iterator[tuple[TicketId, Handed]]:
        """Yields what is known to run on an engine."""
        return (
            (ticket, known.handed)
            for ticket, known in self._tickets.items()
            if known.engine_id == engine_id
        )

    def waiting_longer_than(
        self, limit_s: float, now_s: float
    ) -> Iterator[tuple[TicketId, Ticket, float]]:
        """Yields who waits too long, and for how many seconds, the oldest first."""
        for ticket, known in list(self._tickets.items()):
            waited_s = now_s - known.since_s
            if waited_s <= limit_s:
                return  # Tickets are kept in the order they came.
            if known.engine_id is None:
                yield ticket, known, waited_s

    def waiting_left_behind(self, since_s: float) -> Iterator[tuple[TicketId, Ticket]]:
        """Yields who has waited since then for engines that there are no more."""
        is_left: dict[tuple[ModelName, str], bool] = {}
        for ticket, known in list(self._tickets.items()):
            if known.engine_id is not None or known.since_s > since_s:
                continue
            what = known.model, known.dialect
            if what not in is_left:
                is_left[what] = self._fleet.has_left_behind(*what)
            if is_left[what]:
                yield ticket, known

    # --- gateways ---------------------------------------------------------------------------

    def hear(self, gateway: bytes, now_s: float) -> Gateway:
        """Takes note that a gateway is there; returns what is known of it."""
        known = self.gateways.setdefault(gateway, Gateway(now_s))
        known.heard_s = now_s
        return known

    def drop_gateways(self, silent_s: float, now_s: float) -> None:
        """Forgets gateways that have said nothing for so long, and ends their tickets."""
        for identity, gateway in list(self.gateways.items()):
            if now_s - gateway.heard_s > silent_s:
                for ticket in list(gateway.tickets):
                    self.leave(Leave(ticket))
                del self.gateways[identity]

    def resume(self, sender: bytes, mail: Resume, now_s: float) -> None:
        """Takes a gateway's word for what it has waiting, running and ended."""
        gateway = self.gateways[sender]
        gateway.model = mail.model
        for ended in mail.ended:
            self.leave(ended)
        self._drop_unmentioned(gateway, mail)
        for entry in mail.waiting:
            if entry.ticket not in self._tickets:
                self.arrive(sender, entry, now_s)
        for running in mail.running:
            self.adopt(sender, running, now_s)

    def _drop_unmentioned(self, gateway: Gateway, mail: Resume) -> None:
        """Ends what a gateway knows no more, or knows otherwise: a grant may have been lost."""
        waiting = {entry.ticket for entry in mail.waiting}
        begun = {entry.enqueue.ticket for entry in mail.running}
        for ticket in list(gateway.tickets):
            if ticket not in (begun if self._tickets[ticket].has_run else waiting):
                self.leave(Leave(ticket))

    # --- a ticket's life --------------------------------------------------------------------

    def arrive(self, gateway: bytes, enqueue: Enqueue, now_s: float) -> None:
        """Lets a new request wait."""
        known = self._add(gateway, enqueue, None, now_s)
        self._note_share(enqueue)
        self._queue.arrive(_waiting(enqueue, known.model), now_s)

    def begin(self, ticket: TicketId, engine_id: EngineId, now_s: float) -> Ticket:
        """Hands a waiting request to an engine; the queue has let it go."""
        known = self._tickets[ticket]
        self._pace.note_turn(now_s)
        known.engine_id, known.has_run = engine_id, True
        self._stop_waiting(known)
        self._fleet.hand(engine_id, ticket, known.handed)
        return known

    def charge(self, engine_id: EngineId, progress: Progress) -> None:
        """Charges what an engine has produced; not what a ticket that went elsewhere got there."""
        for ticket, n_tokens in progress.tokens.items():
            known = self._tickets.get(ticket)
            if known is None or known.engine_id != engine_id:
                continue
            known.strikes = 0
            self._queue.charge(ticket, known.count(n_tokens))

    def leave(self, mail: Leave) -> None:
        """Ends a ticket and settles what it owes on the gateway's count."""
        known = self._tickets.pop(mail.ticket, None)
        if known is None:
            return
        self.gateways[known.gateway].tickets.discard(mail.ticket)
        self._farewell.note_end(known.adapter)
        if known.engine_id is None:
            self._stop_waiting(known)
        else:
            if mail.is_finished:
                self._fleet.note_success(known.engine_id, [mail.ticket])
            elif mail.has_failed:
                self._fleet.note_failure(known.engine_id)
            self._fleet.take_back(known.engine_id, mail.ticket)
        # The engine's last progress may still be on its way; it will find no ticket.
        self._queue.charge(mail.ticket, max(0, mail.completion_tokens - known.completion_tokens))
        if known.paid_tokens is not None:
            # Of its prompt nothing is to be given back here, and its length is not all of it.
            self._queue.abort(mail.ticket, 0)
        elif mail.is_finished:
            self._queue.finish(mail.ticket, mail.cached_tokens)
        else:
            n_tokens = max(mail.completion_tokens, known.completion_tokens)
            is_computed = n_tokens > 0 or mail.cached_tokens is not None
            self._queue.abort(mail.ticket, mail.cached_tokens, is_computed=is_computed)

    def adopt(self, sender: bytes, running: RunningTicket, now_s: float) -> None:
        """Takes a ticket that has begun, and charges what its tenant has not been charged."""
        enqueue, n_tokens = running.enqueue, running.completion_tokens
        known = self._tickets.get(enqueue.ticket)
        waits_already = known is not None and known.has_run and known.engine_id is None
        if known is None:
            known = self._add(sender, enqueue, running.engine_id, now_s)
        else:
            self._move(enqueue.ticket, known, running.engine_id, now_s)
            known.model = self.gateways[sender].model
            if known.adapter is None:  # A dead router's state does not say it.
                known.adapter = enqueue.adapter
                self._farewell.note_arrival(known.adapter)
            known.take(enqueue)
        known.has_run, known.strikes = True, running.strikes
        known.paid_tokens = running.paid_tokens
        known.lost_tokens = max(known.completion_tokens - n_tokens, 0)
        known.completion_tokens = max(known.completion_tokens, n_tokens)
        self._note_share(enqueue)
        if running.engine_id is None and waits_already:
            return
        waiting = _waiting(enqueue, known.model)
        if known.paid_tokens is not None:
            waiting = replace(waiting, prompt_tokens=0)
        self._queue.adopt(waiting, n_tokens - (running.paid_tokens or 0), now_s)
        if running.engine_id is None:
            self._queue.requeue(enqueue.ticket)
        else:
            self._fleet.hand(running.engine_id, enqueue.ticket, known.handed)

    def _add(
        self, gateway: bytes, enqueue: Enqueue, engine_id: EngineId | None, now_s: float
    ) -> Ticket:
        owner = self.gateways[gateway]
        known = Ticket(gateway, enqueue.tenant, engine_id, now_s, owner.model, enqueue.adapter)
        known.take(enqueue)
        self._tickets[enqueue.ticket] = known
        owner.tickets.add(enqueue.ticket)
        self._farewell.note_arrival(enqueue.adapter)
        self.longest = self.longest.with_request(_waiting(enqueue, owner.model))
        if engine_id is None:
            self._begin_to_wait(known)
        return known

    def _move(
        self, ticket: TicketId, known: Ticket, engine_id: EngineId | None, now_s: float
    ) -> None:
        """Takes note of where a ticket is. One that waits again is the youngest to do so."""
        self._fleet.take_back(known.engine_id, ticket)
        if known.engine_id is None:
            self._stop_waiting(known)
        if engine_id is None:
            self._begin_to_wait(known)
            known.since_s = now_s
            self._tickets[ticket] = self._tickets.pop(ticket)
        known.engine_id = engine_id

    def _note_share(self, mail: Enqueue) -> None:
        """Gateways know tenants; a change reaches the queue with the tenant's next request."""
        # The queue serves its tier 0 first, and tenants' higher tiers go first.
        share = Share(mail.weight, -mail.tier)
        if self.share_of(mail.tenant) == share:
            return
        if len(self.shares) >= _MOST_SHARES:
            here = {known.tenant for known in self._tickets.values()}
            for tenant in self.shares.keys() - here:
                self._set_share(tenant, _DEFAULT_SHARE)
        self._set_share(mail.tenant, share)

    def _set_share(self, tenant: TenantId, share: Share) -> None:
        self._queue.set_share(tenant, share)
        if share == _DEFAULT_SHARE:
            del self.shares[tenant]
        else:
            self.shares[tenant] = share

    def _begin_to_wait(self, known: Ticket) -> None:
        self._n_waiting[known.tenant] += 1
        self._n_waiting_of[known.model] += 1

    def _stop_waiting(self, known: Ticket) -> None:
        self._n_waiting_of[known.model] -= 1
        self._n_waiting[known.tenant] -= 1
        if not self._n_waiting[known.tenant]:
            del self._n_waiting[known.tenant]
        if not self._n_waiting:
            self._pace.note_empty()

    # --- over a router's death --------------------------------------------------------------

    def saved_runs(self) -> dict[TicketId, SavedRun]:
        """Returns where the tickets belong that have begun."""
        return {
            ticket: SavedRun(known.gateway, known.engine_id, known.paid_tokens)
            for ticket, known in self._tickets.items()
            if known.has_run
        }

    def restore(self, state: RouterState, now_s: float) -> None:
        """Takes the tickets of a router that died; gateways then say what has become of them."""
        for saved in state.queue.tickets:
            run = state.running[saved.ticket]
            gateway = self.gateways.setdefault(run.gateway, Gateway(now_s))
            gateway.tickets.add(saved.ticket)
            known = self._tickets[saved.ticket] = Ticket(
                run.gateway,
                saved.tenant,
                run.engine_id,
                now_s,
                ModelName(saved.model),
                completion_tokens=saved.produced_tokens + (run.paid_tokens or 0),
                has_run=True,
                paid_tokens=run.paid_tokens,
            )
            if run.engine_id is None:
                self._begin_to_wait(known)


def _waiting(mail: Enqueue, model: ModelName) -> Waiting:
    """A model with an adapter is a lane: where one of its requests has no engine, none has."""
    lane = f"{model}@{mail.dialect}"
    if mail.adapter is not None:
        lane += f"#{mail.adapter.id}"
    return Waiting(mail.ticket, mail.tenant, mail.prompt_tokens, mail.max_tokens, lane, model)
