"""Decides whose request runs next, so that tenants get service by weight, token by token.

Inputs: requests as they come, go and produce tokens; where a request could run, from `place`.

The rule (Virtual Token Counters):
  - Each tenant has a counter of the service it got, divided by its weight: prompt tokens when
    admitted, output tokens as they are produced. The least counter is next, if an engine has room
    for it; else the next one, and who was skipped pays nothing.
  - A tenant that comes back is lifted to those who waited meanwhile (`fairness_tier`).
  - A ticket's price depends only on its tokens; the counter moves by what the price has changed.
    So nothing is charged twice, and what was charged by prediction and not used is given back.

Invariants (each a property test of that name):

1. gap_within_bound: two tenants that stay backlogged get service that differs by no more than
   `bound_gap` says.
2. work_conserving: if any waiting request has room, one is admitted, unless all have to wait for
   one that is too big (`passing`).
3. charged_once: a finished ticket has paid the price of its tokens, however often it was resumed.
4. refund_exact: an ended ticket without tokens or computed prompt has paid nothing.
5. skipped_pays_nothing: a decision changes only the counter of the tenant admitted.
6. resumed_go_first: a request that lost its engine goes before all new ones that fit, for nothing.
7. snapshot_restores_all: a restored queue decides as the one that was saved.
8. cheating_gains_nothing: neither many lanes nor aborting nor a large `max_tokens` brings more.
9. load_is_paid_once: its tenant pays for a load, whatever becomes of the request that wanted it.
10. elsewhere_is_bounded: what other queues served puts nobody further behind than is said.
11. served_is_told_once: what is taken adds up to what tickets and loads paid; of who had nothing
    since the last time nothing is kept.

Source: Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, algorithms 2 and 3.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from serve_app.messages import EngineId, TicketId
from serve_app.names import TenantId
from serve_app.policy.admission import Refusal
from serve_app.policy.fairness_audit import (
    Charged,
    Ended,
    Forgotten,
    Loaded,
    Opened,
    Record,
    Requeued,
    Restored,
)
from serve_app.policy.fairness_choice import Choice, Chooser
from serve_app.policy.fairness_options import (
    UNITS,
    NoPrediction,
    Predictor,
    Rates,
    Share,
    TierFloor,
    plan_rates,
)
from serve_app.policy.fairness_records import (
    tell_admission,
    tell_arrival,
    tell_opened,
    tell_resumption,
)
from serve_app.policy.fairness_settings import VtcSettings, to_units
from serve_app.policy.fairness_ticket import (
    SavedTicket,
    SavedTier,
    Snapshot,
    Ticket,
    load_ticket,
    save_ticket,
)
from serve_app.policy.fairness_tier import Account, Tier, Turn
from serve_app.policy.queueing import Waiting
from serve_app.policy.turns import Admission, Fit, Place


class Vtc:
    """Fair queue of one domain: a base model with all its adapters, or several models.

    Args:
        settings: Costs and options.
        predictor: Guesses answer lengths; by default nothing is charged ahead.
        shares: Weight and tier by tenant; others have weight 1 in tier 0.
        audit: Takes a record of every decision; None records nothing.
    """

    def __init__(
        self,
        settings: VtcSettings | None = None,
        predictor: Predictor | None = None,
        shares: Mapping[TenantId, Share] | None = None,
        audit: Callable[[Record], None] | None = None,
    ) -> None:
        self._settings = settings or VtcSettings()
        self._predictor = predictor or NoPrediction()
        self._shares = dict(shares or {})
        self._audit = audit
        self._tiers: dict[int, Tier] = {}
        self._floor = TierFloor(self._settings.floor)
        self._tickets: dict[TicketId, Ticket] = {}
        self._resumed: OrderedDict[TicketId, Ticket] = OrderedDict()
        self._rates: dict[tuple[float, str], Rates] = {}
        self._n_waiting: dict[int, int] = {}
        self._order = 0
        self._refundable = 0
        self._served: dict[TenantId, int] | None = None
        """Units since it was last taken; None until somebody wants to know."""
        passing = self._settings.passing
        self._chooser = Chooser(
            self._tiers,
            self._tickets,
            self._floor,
            self._settings.locality,
            None if passing is None else to_units(passing),
        )
        if audit is not None:
            audit(tell_opened(self._settings, self._floor))

    def set_share(self, tenant: TenantId, share: Share) -> None:
        """Takes a tenant's new weight and tier; tickets that are known keep theirs."""
        if share == _DEFAULT_SHARE:
            self._shares.pop(tenant, None)
        else:
            self._shares[tenant] = share

    # --- the life of a ticket ----------------------------------------------------------------

    def arrive(self, request: Waiting, now_s: float) -> Refusal | None:
        """Lets a new ticket wait. Never refuses: that is admission's business."""
        ticket = self._add(request)
        tier = self._tiers[ticket.tier]
        tier.join(ticket.account, request.lane, request.ticket, ticket.order)
        self._n_waiting[ticket.tier] = self._n_waiting.get(ticket.tier, 0) + 1
        if self._audit is not None:
            self._audit(tell_arrival(ticket, now_s))
        return None

    def admit(self, place: Place, now_s: float) -> Admission | None:
        """Takes out and charges the request whose turn it is among those that fit.

        Asks `place` at most once a lane, and once more a candidate for locality. One to be resumed
        that is too big for the room left holds up all new ones.
        """
        for ticket in self._resumed.values():
            fit = place(ticket.request)
            if isinstance(fit, Fit):
                return self._resume(ticket, fit, now_s)
            if fit is not None:
                return None
        return self._admit_new(place, now_s)

    def charge(self, ticket: TicketId, n_tokens: int) -> None:
        """Charges output tokens as they are produced. An ended ticket is left in peace."""
        known = self._tickets.get(ticket)
        if known is None or not known.is_running or not n_tokens:
            return
        known.account.ahead -= known.ahead
        self._refundable -= n_tokens * known.rates.output
        known.produced_tokens += n_tokens
        beyond = min(known.produced_tokens - known.predicted_tokens, n_tokens)
        if beyond > 0:
            self._pay(known, beyond * known.rates.output)
        known.account.ahead += known.ahead
        if self._audit is not None:
            self._audit(Charged(ticket, n_tokens, known.account.counter))

    def charge_load(self, tenant: TenantId, model: str, n_tokens: float) -> None:
        """Charges a tenant for an adapter that was loaded for it; it is not given back.

        Args:
            tenant: Pays, also when nothing of it is here any more.
            model: Whose engine it was.
            n_tokens: Output tokens that it counts for.
        """
        share = self._shares.get(tenant, _DEFAULT_SHARE)
        units = round(n_tokens * self._rates_of(share.weight, model).output)
        if not units:
            return
        self._count_served(tenant, units)
        account = self._tier(share.tier).charge_beside(tenant, units)
        self._note_beside(account, share.tier, units)

    def charge_elsewhere(self, tenant: TenantId, service: float, most_ahead: float) -> None:
        """Charges a tenant for what another queue has served it, as far as that one counts here.

        Args:
            tenant: Pays, also when nothing of it is here.
            service: By weight, as `take_served` of the other queue has it.
            most_ahead: Service beyond the least of those who wait that it is not charged.
        """
        share = self._shares.get(tenant, _DEFAULT_SHARE)
        tier = self._tier(share.tier)
        room = tier.level() + to_units(most_ahead) - tier.reentry_of(tenant)
        units = min(to_units(service), max(room, 0))
        if units:
            self._note_beside(tier.charge_beside(tenant, units), share.tier, units)

    def _note_beside(self, account: Account, tier: int, units: int) -> None:
        self._floor.charge(tier, units)
        if self._audit is not None:
            self._audit(Loaded(account.tenant, tier, units, account.counter))

    def finish(self, ticket: TicketId, cached_tokens: int | None = None) -> None:
        """Ends a running ticket, corrects what was guessed and learns from it."""
        known = self._tickets.get(ticket)
        if known is None:
            return
        if known.is_running:
            self._predictor.learn(known.request.tenant, known.produced_tokens)
        cached = known.cached_tokens if cached_tokens is None else cached_tokens
        self._end(known, cached, is_computed=True)

    def abort(
        self, ticket: TicketId, cached_tokens: int | None = None, *, is_computed: bool = True
    ) -> bool:
        """Ends a ticket early. What was produced stays paid; nothing is learned from it."""
        known = self._tickets.get(ticket)
        if known is None:
            return False
        cached = known.cached_tokens if cached_tokens is None else cached_tokens
        self._end(known, cached, is_computed=is_computed)
        return True

    def requeue(self, ticket: TicketId) -> None:
        """Lets a running ticket that lost its engine wait to be resumed."""
        known = self._tickets[ticket]
        assert known.is_running, "only a running ticket can lose its engine"
        known.is_running = False
        self._resumed[ticket] = known
        if self._audit is not None:
            self._audit(Requeued(ticket))

    def adopt(self, request: Waiting, produced_tokens: int, now_s: float) -> None:
        """Takes a ticket that runs already, as a gateway tells a router that starts anew.

        It is charged what it has not been: nothing, if the snapshot knew as much.
        """
        known = self._tickets.get(request.ticket)
        if known is None:
            self.arrive(request, now_s)
            known = self._tickets[request.ticket]
        if request.ticket in self._resumed:
            del self._resumed[request.ticket]
            known.is_running = True
        elif not known.is_running:
            turn = Turn(known.account, request.lane, request.ticket)
            self._start(Choice(turn, known.tier, Fit(_NO_ENGINE)), now_s)
        self.charge(request.ticket, max(produced_tokens - known.produced_tokens, 0))

    def __len__(self) -> int:
        return sum(self._n_waiting.values()) + len(self._resumed)

    # --- what others may see -----------------------------------------------------------------

    def backlogged(self) -> set[TenantId]:
        """Returns the tenants that have something waiting."""
        return {tenant for tier in self._tiers.values() for tenant in tier.waiting()}

    def find_gap(self) -> float:
        """Returns the greatest difference of service, counted from the same level, of two who wait.

        Linear in the tenants that wait: for metrics, about once a second.
        """
        return max((_spread(self._served_of_waiting(tier)) for tier in self._tiers), default=0.0)

    def take_served(self) -> dict[TenantId, float]:
        """Returns what tenants were served here since the last call, by weight; first nothing.

        What is charged ahead is in it. Less than 0 is what came back of what an earlier call told.
        """
        served, self._served = self._served or {}, {}
        return {tenant: units / UNITS for tenant, units in served.items() if units}

    def find_lags(self, n: int | None = None) -> dict[TenantId, float]:
        """Returns how far the n least counters of waiting tenants are behind the greatest."""
        lags: dict[TenantId, float] = {}
        for index in self._tiers:
            served = self._served_of_waiting(index)
            most = max(served.values(), default=0)
            lags |= {tenant: (most - units) / UNITS for tenant, units in served.items()}
        ordered = sorted(lags.items(), key=lambda item: (-item[1], item[0]))
        return dict(ordered[:n])

    def counters(self, tenants: Iterable[TenantId] | None = None) -> dict[TenantId, int]:
        """Returns the counters in units, of these tenants or all, as far as they are known."""
        found: dict[TenantId, int] = {}
        for tier in self._tiers.values():
            for tenant in tier.accounts if tenants is None else tenants:
                if tenant in tier.accounts:
                    found[tenant] = tier.accounts[tenant].counter
        return found

    def snapshot(self, *, holds_waiting: bool = True) -> Snapshot:
        """Returns everything that a new router needs to go on from here.

        Args:
            holds_waiting: False leaves out what waits, for a router that will be told it again, and
                says instead who is to be expected.
        """
        tickets = [
            save_ticket(ticket, is_resumed=False)
            for name, ticket in self._tickets.items()
            if ticket.is_running or (holds_waiting and name not in self._resumed)
        ]
        tickets += [save_ticket(ticket, is_resumed=True) for ticket in self._resumed.values()]
        return Snapshot(
            self._order,
            {index: _save_tier(t, holds_waiting=holds_waiting) for index, t in self._tiers.items()},
            tickets,
            self._predictor.export(),
            self._floor.export(),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Takes over everything from a snapshot. Only for a queue that was never used."""
        assert not self._tiers, "a queue in use is not overwritten"
        self._order = snapshot.order
        self._predictor.load(snapshot.lengths)
        self._floor.load(*snapshot.tier_credit)
        for index, saved in snapshot.tiers.items():
            tier = self._tier(index)
            tier.last_leaver, tier.reached = saved.last_leaver, saved.reached
            for tenant, counter in saved.counters.items():
                tier.account_of(tenant).counter = counter
            tier.expect(saved.expected)
        for ticket in snapshot.tickets:
            self._load(ticket)
        for tier in self._tiers.values():
            for account in tier.accounts.values():
                tier.note_idle(account)
        if self._audit is not None:
            self._audit(Restored(snapshot))

    def stop_expecting(self) -> None:
        """Gives up tenants that waited when the snapshot was taken and have not come back."""
        for tier in self._tiers.values():
            tier.stop_expecting()
        if self._audit is not None:
            self._audit(Forgotten())

    def tell_all(self) -> tuple[Opened, Restored]:
        """Returns the records with which a log can begin in the middle."""
        return tell_opened(self._settings, self._floor), Restored(self.snapshot())

    # --- choosing ----------------------------------------------------------------------------

    def _resume(self, ticket: Ticket, fit: Fit, now_s: float) -> Admission:
        del self._resumed[ticket.request.ticket]
        ticket.is_running = True
        if self._audit is not None:
            self._audit(tell_resumption(ticket, fit, now_s))
        return self._admission(ticket, fit, "it had lost its engine", is_resumed=True)

    def _admit_new(self, place: Place, now_s: float) -> Admission | None:
        waiting = [index for index in sorted(self._n_waiting) if self._n_waiting[index]]
        choice = self._chooser.choose(waiting, place)
        if choice is None:
            return None
        counter = choice.turn.account.counter
        ticket = self._start(choice, now_s)
        reason = f"least counter with room: {counter / UNITS:.0f}"
        if choice.refused:
            reason += f"; {len(choice.refused)} lanes before it had none"
        return self._admission(ticket, choice.fit, reason)

    def _admission(
        self, ticket: Ticket, fit: Fit, reason: str, *, is_resumed: bool = False
    ) -> Admission:
        counter = ticket.account.counter
        return Admission(ticket.request, fit, reason, is_resumed, ticket.tier, counter, ticket.paid)

    # --- tickets and what they pay -----------------------------------------------------------

    def _add(self, request: Waiting) -> Ticket:
        assert request.ticket not in self._tickets, "a ticket arrives once"
        share = self._shares.get(request.tenant, _DEFAULT_SHARE)
        account = self._tier(share.tier).account_of(request.tenant)
        rates = self._rates_of(share.weight, request.model)
        self._order += 1
        ticket = Ticket(request, share.tier, account, rates, self._order)
        self._tickets[request.ticket] = ticket
        return ticket

    def _start(self, choice: Choice, now_s: float) -> Ticket:
        ticket = self._tickets[choice.turn.ticket]
        tier = self._tiers[choice.tier]
        tier.admit(choice.turn)
        self._n_waiting[choice.tier] -= 1
        ticket.is_running = True
        ticket.cached_tokens = choice.fit.cached_tokens
        ticket.predicted_tokens = self._predictor.predict(ticket.request)
        self._settle(ticket, is_computed=True)
        ticket.account.ahead += ticket.ahead
        tier.drop_idle(self._refundable)
        if self._audit is not None:
            self._audit(tell_admission(ticket, choice, now_s))
        return ticket

    def _end(self, ticket: Ticket, cached_tokens: int, *, is_computed: bool) -> None:
        tier, request = self._tiers[ticket.tier], ticket.request
        del self._tickets[request.ticket]
        if ticket.is_running or self._resumed.pop(request.ticket, None) is not None:
            ticket.account.ahead -= ticket.ahead
            ticket.cached_tokens, ticket.predicted_tokens = cached_tokens, 0
            self._settle(ticket, is_computed=is_computed)
            self._refundable -= ticket.refundable
            tier.stop(ticket.account)
        else:
            tier.leave(ticket.account, request.lane, request.ticket)
            self._n_waiting[ticket.tier] -= 1
        if self._audit is not None:
            counter = ticket.account.counter
            self._audit(Ended(request.ticket, cached_tokens, is_computed, counter))

    def _settle(self, ticket: Ticket, *, is_computed: bool) -> None:
        """Moves the counter by what the ticket's price differs from what it has paid."""
        self._pay(ticket, ticket.price(is_computed=is_computed) - ticket.paid)

    def _pay(self, ticket: Ticket, units: int) -> None:
        if units:
            ticket.paid += units
            self._refundable += units
            self._count_served(ticket.request.tenant, units)
            self._tiers[ticket.tier].change(ticket.account, units)
            self._floor.charge(ticket.tier, units)

    def _count_served(self, tenant: TenantId, units: int) -> None:
        if self._served is not None:
            self._served[tenant] = self._served.get(tenant, 0) + units

    def _tier(self, index: int) -> Tier:
        if index not in self._tiers:
            settings = self._settings
            credit = settings.max_credit
            self._tiers[index] = Tier(
                lifts=settings.lifts,
                burst=to_units(settings.burst),
                max_credit=None if credit is None else to_units(credit),
            )
        return self._tiers[index]

    def _rates_of(self, weight: float, model: str) -> Rates:
        rates = self._rates.get((weight, model))
        if rates is None:
            rates = self._rates[weight, model] = plan_rates(self._settings.cost, weight, model)
        return rates

    def _served_of_waiting(self, index: int) -> dict[TenantId, int]:
        accounts = self._tiers[index].accounts.values()
        return {a.tenant: a.counter - a.ahead for a in accounts if a.lanes}

    def _load(self, saved: SavedTicket) -> None:
        tier = self._tiers[saved.tier]
        ticket = load_ticket(saved, tier.accounts[saved.tenant])
        self._tickets[saved.ticket] = ticket
        if saved.state == "waiting":
            tier.enter(ticket.account, saved.lane, saved.ticket, saved.order)
            self._n_waiting[saved.tier] = self._n_waiting.get(saved.tier, 0) + 1
            return
        tier.run(ticket.account)
        ticket.account.ahead += ticket.ahead
        self._refundable += ticket.refundable
        if saved.state == "resumed":
            self._resumed[saved.ticket] = ticket


_DEFAULT_SHARE = Share()
_NO_ENGINE = EngineId("")


def _spread(served: Mapping[TenantId, int]) -> float:
    return (max(served.values()) - min(served.values())) / UNITS if served else 0.0


def _save_tier(tier: Tier, *, holds_waiting: bool) -> SavedTier:
    counters = {account.tenant: account.counter for account in tier.accounts.values()}
    expected = tier.expected() + ([] if holds_waiting else tier.waiting())
    return SavedTier(counters, tier.last_leaver, tier.reached, expected)
