"""Invariants of serve_app.policy.limit_bank and limit_shares: what cells hold of one limit."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.cell_messages import Count, Part, Parts, TellLimits
from serve_app.policy.limit_bank import LEASE_S, LimitBank
from serve_app.policy.limit_shares import LimitShares

NAME = "requests_per_min 0 acme - -"


@dataclass
class Cell:
    """A ledger: what counts in it, and what it holds."""

    name: str
    limit: int
    now_s: float
    used: int = 0
    run: int = 0
    turn: int = 0
    shares: LimitShares = field(init=False)

    def __post_init__(self) -> None:
        self.shares = LimitShares(self.now_s)

    def restart(self, now_s: float) -> None:
        self.run += 1
        self.shares = LimitShares(now_s)
        self.shares.note(NAME, self.limit)

    def admit(self, amount: int, now_s: float) -> bool:
        if self.used + amount > self.shares.most(NAME, self.limit, now_s):
            self.shares.want(NAME, self.limit, amount)
            return False
        self.used += amount
        self.shares.take(NAME, self.limit, amount)
        return True

    def tell(self) -> TellLimits:
        self.turn += 1
        counts = self.shares.give_up(lambda name: self.used)
        return TellLimits(self.name, str(self.run), self.turn, counts)

    def exchange(self, bank: LimitBank, now_s: float, *, is_lost: bool = False) -> None:
        told = self.tell()
        parts = bank.tell(told, now_s)
        if parts is not None and not is_lost:
            self.shares.answer(told.counts, parts, now_s)

    def held(self, now_s: float) -> int:
        return max(self.used, self.shares.most(NAME, self.limit, now_s))


def fleet(n: int, limit: int) -> tuple[LimitBank, list[Cell]]:
    """A bank that all cells have told something, open for more."""
    bank, cells = LimitBank(-LEASE_S), [Cell(f"c{i}", limit, 0.0) for i in range(n)]
    for cell in cells * 2:  # so that each has heard of all others
        cell.exchange(bank, 0.0)
    return bank, cells


_acts = st.sampled_from(("admit", "admit", "expire", "exchange", "lose", "restart", "new bank"))
_steps = st.lists(st.tuples(_acts, st.integers(0, 3), st.integers(1, 30)), max_size=60)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 60), _steps)
def test_never_more_than_the_limit(
    n_cells: int, limit: int, steps: list[tuple[str, int, int]]
) -> None:
    bank, cells = fleet(n_cells, limit)
    now_s = 0.0
    for act, i, amount in steps:
        now_s += 0.05 if act in ("exchange", "lose") else 0.5  # nobody is cut off
        cell = cells[i % n_cells]
        if act == "admit":
            cell.admit(amount, now_s)
        elif act == "expire":
            cell.used -= min(amount, cell.used)
        elif act == "restart":
            cell.restart(now_s)
            cell.exchange(bank, now_s)
        elif act == "new bank":
            bank = LimitBank(now_s)
        if act in ("exchange", "lose"):
            cell.exchange(bank, now_s, is_lost=act == "lose")
        else:  # nobody is silent
            for each in cells:
                each.exchange(bank, now_s)
        assert sum(each.held(now_s) for each in cells) <= limit


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 100), st.integers(0, 100), st.integers(1, 100))
def test_asking_gives_all_there_is(n_cells: int, limit: int, elsewhere: int, wanted: int) -> None:
    bank, cells = fleet(n_cells, limit)
    elsewhere = min(elsewhere, limit)
    first = bank.tell(TellLimits("c0", "0", 99, [Count(NAME, limit, elsewhere, elsewhere, 0)]), 0.0)
    assert first is not None
    parts = bank.tell(TellLimits("c1", "0", 99, [Count(NAME, limit, 0, 0, wanted)]), 0.0)
    assert parts is not None
    assert parts.n_cells == len(cells)
    assert parts.parts[0].held >= min(wanted, limit - first.parts[0].held)
    assert parts.parts[0].elsewhere == elsewhere


@settings(deadline=None)
@given(st.integers(1, 5), st.data(), st.integers(1, 100))
def test_cut_off_costs_one_part(n_cells: int, data: st.DataObject, limit: int) -> None:
    bank, cells = fleet(n_cells, limit)
    n_cut = data.draw(st.integers(0, n_cells))
    for cell in cells:
        for _ in range(data.draw(st.integers(0, 40))):
            cell.admit(1, 0.0)
        cell.exchange(bank, 0.0)
    now_s = 0.0
    for _ in range(20):
        now_s += 1.0
        for i, cell in enumerate(cells):
            for _ in range(limit):
                cell.admit(1, now_s)
            if i >= n_cut:
                cell.exchange(bank, now_s)
    assert sum(cell.used for cell in cells) <= limit + n_cut * (limit // n_cells)
    if n_cut == n_cells:
        assert all(cell.used >= limit // n_cells for cell in cells)


def test_what_was_overtaken_on_the_way_is_not_looked_at() -> None:
    bank, _ = fleet(1, 10)
    assert bank.tell(TellLimits("c0", "0", 9, [Count(NAME, 10, 5, 5, 0)]), 0.0) is not None
    assert bank.tell(TellLimits("c0", "0", 8, [Count(NAME, 10, 0, 0, 0)]), 0.0) is None
    assert bank.tell(TellLimits("c0", "1", 1, [Count(NAME, 10, 0, 0, 0)]), 0.0) is not None


def test_a_cell_that_is_gone_for_long_holds_nothing_back() -> None:
    bank, _ = fleet(2, 10)
    ask = [Count(NAME, 10, 0, 0, 10)]
    bank.tell(TellLimits("c0", "0", 9, [Count(NAME, 10, 8, 8, 0)]), 0.0)
    later = bank.tell(TellLimits("c1", "0", 9, ask), 100.0)
    assert later == Parts([Part(2, 8)], 2)
    gone = bank.tell(TellLimits("c1", "0", 10, ask), 700.0)
    assert gone is not None
    assert (gone.parts[0].held, gone.n_cells) == (10, 1)


def test_what_a_lost_cell_used_of_a_month_stays_counted_until_it_is_back() -> None:
    bank, _ = fleet(1, 10)
    spent = Count("tokens_per_month 7 acme - -", 10, 8, 9, 0, lasts=True)
    fresh = Count(spent.name, 10, 0, 0, 10, lasts=True)
    bank.tell(TellLimits("c0", "0", 99, [spent]), 0.0)
    later = bank.tell(TellLimits("c1", "0", 1, [fresh]), 700.0)
    assert later == Parts([Part(2, 8)], 1)
    bank.tell(TellLimits("c0", "0", 100, [spent]), 700.0)
    again = bank.tell(TellLimits("c1", "0", 2, [fresh]), 700.0)
    assert again == Parts([Part(1, 9)], 2)


# --- what one cell holds --------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 100), st.lists(st.integers(1, 20), max_size=20))
def test_never_beyond_what_is_held(limit: int, asked: list[int]) -> None:
    bank, (cell,) = fleet(1, limit)
    for amount in asked:
        most = cell.shares.most(NAME, limit, 0.0)
        cell.admit(amount, 0.0)
        assert cell.used <= max(most, 0)
        assert cell.shares.most(NAME, limit, 0.0) == most
        cell.exchange(bank, 0.0)


@settings(deadline=None)
@given(st.integers(2, 100))
def test_idle_limits_are_given_back(limit: int) -> None:
    bank, (one, other) = fleet(2, limit)
    one.admit(limit, 0.0)
    one.exchange(bank, 0.0)
    assert one.admit(limit, 0.0)
    one.used = 0
    for _ in range(12):
        told = one.tell()
        bank.tell(told, 0.0)
    assert one.shares.most(NAME, limit, 0.0) == 0
    other.admit(limit, 0.0)
    other.exchange(bank, 0.0)
    assert other.admit(limit, 0.0)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 100))
def test_cut_off_counts_its_part(n_cells: int, limit: int) -> None:
    _, cells = fleet(n_cells, limit)
    assert cells[0].shares.most(NAME, limit, LEASE_S) == 0
    assert cells[0].shares.most(NAME, limit, LEASE_S + 0.1) == limit // n_cells


def test_a_cell_that_has_never_heard_of_its_bank_counts_nothing() -> None:
    assert LimitShares(0.0).most(NAME, 10, 1000.0) == 0
