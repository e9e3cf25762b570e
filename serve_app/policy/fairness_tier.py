"""The virtual counters of the tenants of one priority tier, and who of them is next.

Inputs: who has something waiting in which lane, who runs, what is charged.

The rule:
  - Next is the waiting tenant with the least counter; ties go to the smaller tenant id, and among
    one tenant's lanes to the oldest request.
  - A tenant that had nothing waiting is lifted to the least counter among those who wait, less what
    that one is charged ahead of its tokens: it comes to what the other has got, not to what the
    other will get while both wait. If nobody waits, to the counter of the tenant that last left the
    queue or the least among those who run, whichever is more. What it is itself charged ahead
    comes on top. A counter is never lowered by this. `burst` leaves it that much below.
  - `max_credit` bounds what a tenant may save up while its lanes have no room.
  - Tenants that waited when a dead router's counters were saved are expected: until they are back
    they count as waiting, and they come back without a lift.

Invariants (each a property test of that name):

1. least_counter_is_next: no waiting tenant in a lane with room has a smaller counter.
2. lift_never_lowers: a lift leaves a counter as it is or raises it.
3. lift_meets_the_waiting: nobody comes back with more than `burst` less than all who wait have got.
4. dropping_changes_nothing: forgetting idle tenants changes no decision.
5. return_lifts_nobody: when all who are expected are back, in whatever order, the counters are what
   they were.

Source: Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024, algorithm 2. Counting
those who still run, the bounded credit, and dropping are ours.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from serve_app.messages import TicketId
from serve_app.names import TenantId
from serve_app.policy.least_first import Key, LeastFirst

_DROPS_PER_CALL = 8


@dataclass(slots=True, eq=False)
class Account:
    """What is known of one tenant in its tier."""

    tenant: TenantId
    counter: int = 0
    """Units of weighted service."""
    ahead: int = 0
    """Units of it charged for tokens that are not produced yet."""
    lanes: dict[str, OrderedDict[TicketId, int]] = field(default_factory=dict)
    """Waiting tickets with their order of arrival, by lane."""
    n_running: int = 0
    is_noted: bool = False
    """Whether it is in the list of accounts that may be forgotten."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it waits or runs."""
        return not self.lanes and not self.n_running


@dataclass(frozen=True, slots=True)
class Turn:
    """A request whose turn it may be."""

    account: Account
    lane: str
    ticket: TicketId


class Tier:
    """One tier's counters and queue.

    Args:
        lifts: False leaves out the lift, which makes it Least Counter First.
        burst: Units that a tenant which was away may have saved up.
        max_credit: Units that a tenant without room may fall behind; None sets no bound. At least
            the bound on counters, or it disturbs tenants that have room.
    """

    def __init__(
        self, *, lifts: bool = True, burst: int = 0, max_credit: int | None = None
    ) -> None:
        self._lifts = lifts
        self._burst = burst
        self._max_credit = max_credit
        self.accounts: dict[TenantId, Account] = {}
        self.last_leaver: TenantId | None = None
        self.reached = 0
        """Greatest counter with which anybody was admitted."""
        self._lanes: dict[str, LeastFirst[TenantId]] = {}
        self._top: LeastFirst[str] = LeastFirst(self._key_of_lane)
        self._running: LeastFirst[TenantId] = LeastFirst(self._key_of_running)
        self._expected: set[TenantId] = set()
        self._returning: LeastFirst[TenantId] = LeastFirst(self._key_of_expected)
        self._idle: list[tuple[int, TenantId]] = []

    def account_of(self, tenant: TenantId) -> Account:
        """Returns a tenant's account, new if need be."""
        account = self.accounts.get(tenant)
        if account is None:
            account = self.accounts[tenant] = Account(tenant)
        return account

    def join(self, account: Account, lane: str, ticket: TicketId, order: int) -> None:
        """Lets a request wait, and lifts its tenant if none of its requests did."""
        is_new = not account.lanes and account.tenant not in self._expected
        if is_new and self._lifts:
            account.counter = max(account.counter, self.level() - self._burst + account.ahead)
        self._expected.discard(account.tenant)
        self.enter(account, lane, ticket, order)

    def enter(self, account: Account, lane: str, ticket: TicketId, order: int) -> None:
        """Lets a request wait without a lift: one that waited before the router started anew."""
        account.lanes.setdefault(lane, OrderedDict())[ticket] = order
        tenants = self._lanes.get(lane)
        if tenants is None:
            tenants = self._lanes[lane] = LeastFirst(lambda tenant: self._key_of(tenant, lane))
        tenants.put(account.tenant)
        self._top.put(lane)

    def leave(self, account: Account, lane: str, ticket: TicketId) -> None:
        """Takes a waiting request out, admitted or not."""
        waiting = account.lanes[lane]
        del waiting[ticket]
        if not waiting:
            del account.lanes[lane]
            if self._lanes[lane].least() is None:
                del self._lanes[lane]
        before, self.last_leaver = self.last_leaver, account.tenant
        self.note_idle(account)
        if before is not None and before in self.accounts:
            self.note_idle(self.accounts[before])

    def run(self, account: Account) -> None:
        """Counts a request as running."""
        account.n_running += 1
        self._running.put(account.tenant)

    def stop(self, account: Account) -> None:
        """Counts a request as running no more."""
        account.n_running -= 1
        self.note_idle(account)

    def change(self, account: Account, units: int) -> None:
        """Charges a tenant; less than 0 gives back."""
        account.counter += units
        if units < 0:
            for lane in account.lanes:
                self._lanes[lane].put(account.tenant)
                self._top.put(lane)
            self._running.put(account.tenant)
            self._returning.put(account.tenant)

    def reentry_of(self, tenant: TenantId) -> int:
        """Returns a tenant's counter, or where it comes back if it is away."""
        account = self.accounts.get(tenant)
        counter = 0 if account is None else account.counter
        is_away = account is None or account.is_idle
        if is_away and self._lifts and tenant not in self._expected:
            return max(counter, self.level() - self._burst)
        return counter

    def charge_beside(self, tenant: TenantId, units: int) -> Account:
        """Charges for what is no request's. One who is away is charged from where it comes back."""
        account = self.account_of(tenant)
        account.counter = self.reentry_of(tenant)
        self.change(account, units)
        self.note_idle(account)
        return account

    def expect(self, tenants: Iterable[TenantId]) -> None:
        """Takes note of tenants that will be back: those that waited when counters were saved."""
        for tenant in tenants:
            self._expected.add(tenant)
            self._returning.put(tenant)

    def stop_expecting(self) -> None:
        """Takes tenants that are not back by now for tenants that have left."""
        gone, self._expected = self._expected, set()
        for tenant in gone:
            self.note_idle(self.accounts[tenant])

    def expected(self) -> list[TenantId]:
        """Returns who is expected and not back yet."""
        return sorted(self._expected)

    def waiting(self) -> list[TenantId]:
        """Returns who has something waiting."""
        return [account.tenant for account in self.accounts.values() if account.lanes]

    def least(self) -> Turn | None:
        """Returns whose turn it is among the lanes that are not set aside."""
        lane = self._top.least()
        return None if lane is None else self._turn(lane)

    def set_aside(self, lane: str) -> None:
        """Leaves out the lane of the turn that `least` has just returned."""
        popped = self._top.pop()
        assert popped == lane, "only the lane of the least turn is set aside"

    def put_back(self, lane: str) -> None:
        """Lets a lane take part again."""
        self._top.put(lane)

    def turns_within(self, units: int, n: int) -> list[Turn]:
        """Returns up to n turns with counters up to this, one a tenant and lane."""
        turns: list[Turn] = []
        lanes: list[str] = []
        while len(turns) < n and (lane := self._top.least()) is not None:
            if self._turn(lane).account.counter > units:
                break
            self._top.pop()
            lanes.append(lane)
            turns += self._turns_of_lane(lane, units, n - len(turns))
        for lane in lanes:
            self._top.put(lane)
        return turns

    def admit(self, turn: Turn) -> None:
        """Takes out a turn and counts it as running; what it costs is charged by `change`."""
        if self._max_credit is not None:
            floor = self.reached - self._max_credit
            turn.account.counter = max(turn.account.counter, floor)
        self.reached = max(self.reached, turn.account.counter)
        self.run(turn.account)
        self.leave(turn.account, turn.lane, turn.ticket)

    def level(self) -> int:
        """Returns what a tenant that comes back is lifted to, what it is charged ahead left out."""
        credit = self._max_credit
        base = 0 if credit is None else max(self.reached - credit, 0)
        waiting = self._least_waiting()
        if waiting is not None:
            return max(waiting, base)
        if self.last_leaver is not None:
            base = max(base, self.accounts[self.last_leaver].counter)
        running = self._running.least()
        return base if running is None else max(base, self.accounts[running].counter)

    def drop_idle(self, refundable: int) -> None:
        """Forgets some tenants whom a lift would bring at least to where they are.

        Args:
            refundable: Units that running requests may give back, by which the level may yet fall.
        """
        if not self._idle:
            return
        keep_above = self.level() - self._burst - refundable
        for _ in range(_DROPS_PER_CALL):
            if not self._idle or self._idle[0][0] > keep_above:
                return
            account = self.accounts[heapq.heappop(self._idle)[1]]
            account.is_noted = False
            if account.tenant == self.last_leaver or account.tenant in self._expected:
                continue
            if account.is_idle and account.counter <= keep_above:
                del self.accounts[account.tenant]
            else:
                self.note_idle(account)

    def note_idle(self, account: Account) -> None:
        """Takes note of an account that can be forgotten once the others have caught up."""
        if account.is_idle and not account.is_noted:
            account.is_noted = True
            heapq.heappush(self._idle, (account.counter, account.tenant))

    def _least_waiting(self) -> int | None:
        """Returns what the least of those who wait or are expected has got, in tokens produced."""
        turn = self.least()
        expected = self._returning.least() if self._expected else None
        accounts = [] if turn is None else [turn.account]
        if expected is not None:
            accounts.append(self.accounts[expected])
        if not accounts:
            return None
        least = min(accounts, key=lambda account: (account.counter, account.tenant))
        return least.counter - least.ahead

    def _turns_of_lane(self, lane: str, units: int, n: int) -> list[Turn]:
        tenants, turns = self._lanes[lane], list[Turn]()
        while len(turns) < n and tenants.least() is not None:
            turn = self._turn(lane)
            if turn.account.counter > units:
                break
            tenants.pop()
            turns.append(turn)
        for turn in turns:
            tenants.put(turn.account.tenant)
        return turns

    def _turn(self, lane: str) -> Turn:
        tenant = self._lanes[lane].least()
        assert tenant is not None, "a lane is kept only while somebody waits in it"
        account = self.accounts[tenant]
        return Turn(account, lane, next(iter(account.lanes[lane])))

    def _key_of(self, tenant: TenantId, lane: str) -> Key | None:
        account = self.accounts.get(tenant)
        waiting = account.lanes.get(lane) if account is not None else None
        if account is None or waiting is None:
            return None
        return account.counter, tenant, next(iter(waiting.values()))

    def _key_of_lane(self, lane: str) -> Key | None:
        tenants = self._lanes.get(lane)
        tenant = None if tenants is None else tenants.least()
        return None if tenant is None else self._key_of(tenant, lane)

    def _key_of_expected(self, tenant: TenantId) -> Key | None:
        return (self.accounts[tenant].counter, tenant, 0) if tenant in self._expected else None

    def _key_of_running(self, tenant: TenantId) -> Key | None:
        account = self.accounts.get(tenant)
        if account is None or not account.n_running:
            return None
        return account.counter, tenant, 0
