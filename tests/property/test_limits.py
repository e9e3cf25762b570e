"""Invariants of `policy.limits`, `policy.leases` and `policy.usage_counts`.

A machine reserves, settles, lets gateways and the ledger crash and moves the clock, and compares
with a model that keeps every request there ever was and adds them up anew at each look.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from deployments.ledger_journal import Closed, Opened, Record, Snapshot, read_ordered
from serve_app.config_limits import LimitSpec, PriceSpec
from serve_app.ledger_messages import Granted, Progress, Refused, Reserve, Usage
from serve_app.names import KeyId, ModelName, TenantId
from serve_app.policy.leases import BookState, LeaseBook, Scope, scopes_of
from serve_app.policy.limits import Limiter
from serve_app.policy.usage_counts import Charge
from tests.support.limits import TableOfLimits, ask_for

LEASE_S = 30.0
TICK_S = 0.05
START_S = datetime(2027, 2, 28, 23, 50, tzinfo=UTC).timestamp()
TENANTS = [TenantId("a"), TenantId("b")]
KEYS = [KeyId(""), KeyId("k1"), KeyId("k2")]
MODELS = [ModelName("m"), ModelName("x")]
PRICE = PriceSpec(usd_per_million_prompt_tokens=1.0, usd_per_million_completion_tokens=3.0)
# A request of at most 20 + 2 · 20 tokens costs at most 140 millionths of a dollar.
counts = st.none() | st.integers(1, 8)
tokens = st.none() | st.integers(15, 200)
specs = st.builds(
    LimitSpec,
    requests_per_min=counts,
    concurrent_requests=counts,
    max_output_tokens=st.none() | st.integers(5, 20),
    prompt_tokens_per_min=tokens,
    completion_tokens_per_min=tokens,
    total_tokens_per_min=tokens,
    tokens_per_day=tokens,
    tokens_per_month=tokens,
    usd_per_day=st.none() | st.floats(5e-5, 1e-3),
    usd_per_month=st.none() | st.floats(5e-5, 1e-3),
)
RATES: dict[str, Callable[[Charge], int]] = {
    "requests_per_min": lambda c: c.requests,
    "prompt_tokens_per_min": lambda c: c.prompt_tokens,
    "completion_tokens_per_min": lambda c: c.completion_tokens,
    "total_tokens_per_min": lambda c: c.tokens,
}
BUDGETS: dict[str, Callable[[Charge], int]] = {
    "tokens": lambda c: c.tokens,
    "usd": lambda c: c.pico_usd,
}


@dataclass
class Known:
    """One request as the model remembers it."""

    ask: Reserve
    at_s: float
    """By a clock that runs forward."""
    date: tuple[int, int]
    """Day and month of its admission."""
    charge: Charge
    usage: Usage
    renewed_s: float
    state: str = "running"
    lapsed_s: float = 0.0


class Naive:
    """Every request there ever was."""

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.elapsed_s = 0.0
        """Time that has passed, however the clock was set."""
        self.date = (0, 0)

    def pass_to(self, wall_s: float) -> None:
        day = int(wall_s // 86_400)
        moment = datetime.fromtimestamp(wall_s, UTC)
        month = moment.year * 12 + moment.month
        self.date = (max(self.date[0], day), max(self.date[1], month))
        for entry in self.known.values():
            if entry.state == "running" and self.since(entry.renewed_s) >= LEASE_S:
                entry.state, entry.charge = "lapsed", cost(entry.ask, entry.usage)
                entry.lapsed_s = self.elapsed_s
            elif entry.state == "lapsed" and self.since(entry.lapsed_s) >= 3600:
                entry.state = "settled"  # The ledger does not wait for its gateway any longer.

    def since(self, moment_s: float) -> float:
        return round(self.elapsed_s - moment_s, 3)

    def of(self, scope: Scope) -> list[Known]:
        return [e for e in self.known.values() if scope in scopes(e.ask)]

    def minute(self, scope: Scope) -> list[Charge]:
        now_tick = self.elapsed_ms // 50
        return [e.charge for e in self.of(scope) if now_tick - round(e.at_s * 1e3) // 50 <= 1200]

    @property
    def elapsed_ms(self) -> int:
        return round(self.elapsed_s * 1e3)

    def period(self, scope: Scope, which: int) -> list[Charge]:
        return [e.charge for e in self.of(scope) if e.date[which] == self.date[which]]

    def n_running(self, scope: Scope) -> int:
        return sum(e.ask.requests for e in self.of(scope) if e.state == "running")


def scopes(ask: Reserve) -> tuple[Scope, ...]:
    return scopes_of(ask.tenant, ask.key, ask.model)


def cost(ask: Reserve, usage: Usage) -> Charge:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return Charge(ask.requests, prompt, completion, (prompt + 3 * completion) * 10**6)


def total(charges: list[Charge]) -> Charge:
    return Charge(*(sum(column) for column in zip(*charges, strict=True))) if charges else Charge()


class LimitsMachine(RuleBasedStateMachine):
    """Requests under limits, with everything that can go wrong."""

    asked = Bundle("asked")

    def __init__(self) -> None:
        super().__init__()
        self.naive = Naive()
        self.wall_s = START_S
        self.journal: list[Record] = []
        self.has_heard_of_lapsed = False
        self.is_predicting = False

    @initialize(table=st.lists(specs, min_size=7, max_size=7), start=st.integers(0, 86_400 * 3))
    def begin(self, table: list[LimitSpec], start: int) -> None:
        a, b = TENANTS
        places = [
            *(Scope(a), Scope(a, key=KeyId("k1")), Scope(a, key=KeyId("k2"))),
            *(Scope(a, model=MODELS[0]), Scope(a, model=MODELS[1]), Scope(b)),
            Scope(b, model=MODELS[0]),
        ]
        limits = dict(zip(places, table, strict=True))
        self.source = TableOfLimits(limits, dict.fromkeys(MODELS, PRICE))
        self.wall_s = START_S + start
        self.make()
        self.pass_time(0.0)

    def make(self) -> None:
        self.book = LeaseBook(LEASE_S)
        self.limiter = Limiter(self.source, self.book)

    # --- what happens -----------------------------------------------------------------------

    @rule(
        target=asked,
        tenant=st.sampled_from(TENANTS),
        key=st.sampled_from(KEYS),
        model=st.sampled_from(MODELS),
        requests=st.sampled_from([1, 1, 1, 0]),
        prompt=st.integers(1, 20),
        most=st.lists(st.integers(1, 20), min_size=1, max_size=2),
        is_given=st.booleans(),
    )
    def reserve(
        self,
        tenant: TenantId,
        key: KeyId,
        model: ModelName,
        requests: int,
        prompt: int,
        most: list[int],
        is_given: bool,
    ) -> Reserve:
        ask = ask_for(
            prompt,
            *most,
            tenant=tenant,
            key=key,
            model=model,
            requests=requests,
            is_max_tokens_given=is_given,
        )
        self.ask(ask)
        return ask

    @rule(ask=asked)
    def ask_again(self, ask: Reserve) -> None:
        """As a gateway does whose connection broke before the answer came."""
        if ask.lease not in self.naive.known:
            self.ask(ask)
        elif self.naive.known[ask.lease].state == "running":
            self.naive.known[ask.lease].renewed_s = self.naive.elapsed_s
            assert isinstance(self.decide(ask), Granted)

    def ask(self, ask: Reserve) -> None:
        before = {scope: self.counts(scope) for scope in scopes(ask)}
        answer = self.decide(ask)
        if isinstance(answer, Refused):
            self.no_false_refusal(ask, answer)
            # refusal_takes_nothing
            assert before == {scope: self.counts(scope) for scope in scopes(ask)}
            self.wait_is_true_and_least(ask, answer)
            return
        used = Usage(ask.prompt_tokens, sum(self.cut(ask)))
        self.naive.known[ask.lease] = Known(
            ask,
            self.naive.elapsed_s,
            self.naive.date,
            cost(ask, used),
            Usage(),
            self.naive.elapsed_s,
        )

    def cut(self, ask: Reserve) -> list[int]:
        limits = [self.source.limits_of(scope).max_output_tokens for scope in scopes(ask)]
        most = min((limit for limit in limits if limit is not None), default=10**9)
        return [min(tokens, most) for tokens in ask.max_tokens]

    @rule(ask=asked, share=st.floats(0, 1))
    def renew(self, ask: Reserve, share: float) -> None:
        entry = self.naive.known.get(ask.lease)
        usage = Usage(ask.prompt_tokens, int(share * sum(self.cut(ask))))
        running = self.book.renew(ask.lease, usage, self.wall_s)
        if entry is None or entry.state == "settled":
            assert running is None
            return
        if entry.state == "lapsed":
            self.has_heard_of_lapsed = True
            entry.state = "running"
            entry.charge = cost(ask, Usage(ask.prompt_tokens, sum(self.cut(ask))))
        entry.renewed_s, entry.usage = self.naive.elapsed_s, usage

    @rule(ask=asked, share=st.none() | st.floats(0, 1))
    def settle(self, ask: Reserve, share: float | None) -> None:
        usage = None
        if share is not None:
            usage = Usage(ask.prompt_tokens, int(share * sum(self.cut(ask))))
        charge = self.book.settle(ask.lease, usage, self.wall_s)
        entry = self.naive.known.get(ask.lease)
        # settles_once
        assert (charge is not None) == (entry is not None and entry.state != "settled")
        if entry is None or charge is None:
            return
        self.journal.append(Closed(ask.lease, charge, self.wall_s, is_final=True))
        self.has_heard_of_lapsed |= entry.state == "lapsed"
        entry.state = "settled"
        entry.charge = Charge() if usage is None else cost(ask, usage)

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.949, 7.3, 29.999, 30.0, 60.05, 3000.0, 50_000.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(seconds=st.sampled_from([0.01, 5.0, 3600.0, 100_000.0]))
    def set_clock_back(self, seconds: float) -> None:
        """time_runs_forward: the model does not notice."""
        self.wall_s = round(self.wall_s - seconds, 3)
        # The ledger reads its clock all the time; what happens between two readings is not seen.
        self.pass_time(0.0)
        # Nor can one that crashes now know of it, so it has just written what it knows.
        self.compact()

    @precondition(lambda self: self.naive.known)
    @rule()
    def crash_of_all_gateways(self) -> None:
        """leases_leak_nothing: what they had is counted as they last said."""
        self.pass_time(LEASE_S)
        assert not self.book.state.running
        assert not self.book.state.n_running

    @rule(is_compacted=st.booleans())
    def crash_of_the_ledger(self, is_compacted: bool) -> None:
        """state_survives: what it knew comes back from its journal, running leases anew."""
        if is_compacted:
            self.compact()
        before = self.book.state
        content = msgspec.msgpack.encode(self.journal)
        self.make()
        for record in msgspec.msgpack.decode(content, type=list[Record], dec_hook=read_ordered):
            match record:
                case Snapshot():
                    self.book.state = record.state
                case Opened():
                    self.book.open(record.lease)
                case Closed():
                    self.book.close(
                        record.lease, record.cost, record.now_s, is_final=record.is_final
                    )
        self.book.recover(self.wall_s)
        for entry in self.naive.known.values():
            if entry.state == "running":
                entry.renewed_s = self.naive.elapsed_s
                progress = Progress(entry.ask, entry.usage)
                assert self.limiter.announce(progress, self.wall_s) is None
        assert self.book.state.running.keys() == before.running.keys()

    @rule(ask=asked)
    def forget(self, ask: Reserve) -> None:
        entry = self.naive.known.get(ask.lease)
        if entry is not None and entry.state == "settled":
            self.book.forget(ask.lease)

    # --- what must hold ---------------------------------------------------------------------

    @invariant()
    def counts_match_history(self) -> None:
        for scope in {s for e in self.naive.known.values() for s in scopes(e.ask)}:
            assert self.counts(scope) == (
                total(self.naive.minute(scope)),
                total(self.naive.period(scope, 0)),
                total(self.naive.period(scope, 1)),
                self.naive.n_running(scope),
            )

    @invariant()
    def never_beyond_a_limit(self) -> None:
        if self.has_heard_of_lapsed or not self.naive.known:
            return
        for scope, spec in self.source.limits.items():
            minute, day, month, n_running = self.counts(scope)
            for name, measure in RATES.items():
                assert measure(minute) <= (getattr(spec, name) or 10**18)
            assert n_running <= (spec.concurrent_requests or 10**18)
            for name, measure in BUDGETS.items():
                units = 10**12 if name == "usd" else 1
                for span, used in (("day", day), ("month", month)):
                    limit = getattr(spec, f"{name}_per_{span}")
                    assert limit is None or measure(used) <= round(limit * units)

    def no_false_refusal(self, ask: Reserve, answer: Refused) -> None:
        scope = next(s for s in scopes(ask) if str(s) == answer.scope)
        wanted = cost(ask, Usage(ask.prompt_tokens, sum(self.cut(ask))))
        limit = getattr(self.source.limits_of(scope), answer.limit)
        assert answer.value == limit
        if answer.limit in RATES:
            measure = RATES[answer.limit]
            used, asked, bound = measure(total(self.naive.minute(scope))), measure(wanted), limit
        elif answer.limit == "concurrent_requests":
            used, asked, bound = self.naive.n_running(scope), 1, limit
        elif answer.limit == "max_output_tokens":
            used, asked, bound = 0, max(ask.max_tokens), limit
        else:
            name, _, span = answer.limit.split("_")
            charges = self.naive.period(scope, ("day", "month").index(span))
            units = 10**12 if name == "usd" else 1
            used, asked = BUDGETS[name](total(charges)), BUDGETS[name](wanted)
            bound = round(limit * units)
            assert answer.used == used / units
        assert used + asked > bound
        assert (answer.retry_after_s is None) == (asked > bound)

    def wait_is_true_and_least(self, ask: Reserve, answer: Refused) -> None:
        if answer.retry_after_s is None:
            return
        # wait_is_true
        assert isinstance(self.decide_later(ask, answer.retry_after_s), Granted)
        # wait_is_least
        if answer.retry_after_s > 0.002:
            too_early_s = answer.retry_after_s - 0.002
            assert isinstance(self.decide_later(ask, too_early_s, is_renewed=True), Refused)

    @rule(tenant=st.sampled_from(TENANTS), key=st.sampled_from(KEYS))
    def reset_is_true(self, tenant: TenantId, key: KeyId) -> None:
        model = MODELS[0]
        standing = self.limiter.look(tenant, key, model, self.wall_s)
        for name in ("requests", "tokens"):
            meter = getattr(standing, name)
            if meter is None:
                continue
            later = self.copy()
            now_s = self.wall_s + meter.reset_s + 1e-6
            later.book.expire(now_s)
            meters = later.limiter.look(tenant, key, model, now_s)
            assert getattr(meters, name) is not None
            same = [
                later.book.account(scope).minute
                for scope in scopes_of(tenant, key, model)
                if any(getattr(self.source.limits_of(scope), rate) == meter.limit for rate in RATES)
            ]
            assert any(measure(minute) == 0 for minute in same for measure in RATES.values()), (
                "something that had this limit is empty"
            )

    # --- how ---------------------------------------------------------------------------------

    def decide(self, ask: Reserve) -> Granted | Refused:
        answer, lease = self.limiter.reserve(ask, self.wall_s)
        if lease is not None:
            self.journal.append(Opened(lease))
        return answer

    def decide_later(
        self, ask: Reserve, seconds: float, *, is_renewed: bool = False
    ) -> Granted | Refused:
        later = self.copy()
        if is_renewed:
            for running in later.book.state.running.values():
                running.expires_us += 10**15
        later.book.expire(self.wall_s + seconds)
        return later.limiter.reserve(ask, self.wall_s + seconds)[0]

    def compact(self) -> None:
        self.journal = [Snapshot(self.copy().book.state)]

    def copy(self) -> "LimitsMachine":
        twin = object.__new__(LimitsMachine)
        twin.source = self.source
        twin.make()
        content = msgspec.msgpack.encode(self.book.state)
        twin.book.state = msgspec.msgpack.decode(content, type=BookState, dec_hook=read_ordered)
        return twin

    def pass_time(self, seconds: float) -> None:
        self.naive.elapsed_s = round(self.naive.elapsed_s + seconds, 3)
        self.wall_s = round(self.wall_s + seconds, 3)
        self.naive.pass_to(self.wall_s)
        for lease, charge in self.book.expire(self.wall_s):
            self.journal.append(Closed(lease, charge, self.wall_s, is_final=False))

    def counts(self, scope: Scope) -> tuple[Charge, Charge, Charge, int]:
        self.book.state.clock.read(self.wall_s)
        account = self.book.account(scope)
        return (
            account.minute,
            account.used("day"),
            account.used("month"),
            self.book.n_running(scope),
        )


TestLimits = LimitsMachine.TestCase
TestLimits.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
