"""One engine as a router knows it."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_app.dialect import dialect_of
from serve_app.messages import EngineReport, TicketId
from serve_app.names import ModelName, TenantId
from serve_app.policy.adapter_tier import KEPT_AHEAD_S
from serve_app.policy.adapters import may_load_ahead
from serve_app.policy.breaker import Breaker
from serve_app.policy.prefixes import PrefixMemory
from serve_app.policy.slot_claims import SlotClaims

SILENT_ENGINE_S = 5.0
"""An engine without a heartbeat for so long gets nothing more; it sends one every 0.5 s."""
_FORGET_FAILED_S = 60.0
"""How long the reason stays visible for which an engine died."""
_FORGET_UNSTARTED_S = 86_400.0
"""The same, if it could not even start, until another one starts, fails to or is asked for."""
_FORGET_ASKED_S = 3.0
"""An adapter that has neither come nor failed by then, and that the engine does not say is coming,
may be asked for again. It says so twice a second."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A request that an engine has."""

    tenant: TenantId
    adapter_id: int | None = None
    marks: Sequence[int] = ()
    """Of its prompt."""


@dataclass(frozen=True, slots=True)
class Asked:
    """That an engine is to bring an adapter into memory."""

    at_s: float
    tenant: TenantId | None = None
    """Whose request it is for; where it is about the price, None is nobody's."""


@dataclass
class KnownEngine:
    """What it said, what it was handed, and what is thought of it."""

    report: EngineReport
    heard_s: float
    in_flight: dict[TicketId, Handed] = field(default_factory=dict)
    """Requests handed to it and not ended."""
    by_tenant: Counter[TenantId] = field(default_factory=Counter)
    by_adapter: Counter[int] = field(default_factory=Counter)
    """The same, counted by tenant and by adapter; those with none are left out."""
    in_memory: frozenset[int] = frozenset()
    on_disk: frozenset[int] = frozenset()
    """Adapters, as it said last."""
    asked: dict[int, "Asked"] = field(default_factory=dict)
    """Adapters that it was asked to prepare, or said to be on their way, and has not yet."""
    ahead: dict[int, "Asked"] = field(default_factory=dict)
    """Adapters that it was asked to prepare while no request with them has been handed to it."""
    claims: SlotClaims = field(default_factory=SlotClaims)
    loaded_for: list[TenantId] = field(default_factory=list)
    """For whom adapters have come that it was asked for, until somebody charges them."""
    prefixes: PrefixMemory = field(default_factory=PrefixMemory)
    """What its prefix cache is believed to hold."""
    is_reachable: bool = True
    has_served: bool = False
    """Whether it was ever ready."""
    is_outdated: bool = False
    """Whether another one has started, failed to or been asked for since it failed to."""
    breaker: Breaker = field(default_factory=Breaker)
    on_probation: TicketId | None = None
    """A suspect of killing engines, or the first request after the engine kept failing, that has
    not got a token here yet: nobody else may come."""

    @property
    def dialect(self) -> str:
        """What it understands; empty before it has said so."""
        return dialect_of(self.report.config_id)

    @property
    def is_ready(self) -> bool:
        """Whether it takes what comes."""
        return self.report.state == "ready" and self.is_reachable

    def serves(self, model: ModelName, dialect: str) -> bool:
        """Whether it runs requests for a model in a dialect; an empty one is any."""
        return self.report.model == model and dialect in ("", self.dialect)

    @property
    def is_unstarted(self) -> bool:
        """Whether it failed before it ever served."""
        return self.report.state == "failed" and not self.has_served

    @property
    def keep_s(self) -> float:
        """How long it stays known after its last word."""
        if self.is_unstarted:
            return SILENT_ENGINE_S if self.is_outdated else _FORGET_UNSTARTED_S
        return _FORGET_FAILED_S if self.report.state == "failed" else SILENT_ENGINE_S

    def hand(self, ticket: TicketId, handed: Handed) -> None:
        """Counts a request as handed to it. Known ones are left as they are."""
        if ticket not in self.in_flight:
            self.in_flight[ticket] = handed
            self.by_tenant[handed.tenant] += 1
            if handed.adapter_id is not None:
                self.by_adapter[handed.adapter_id] += 1
                self.ahead.pop(handed.adapter_id, None)
                self.claims.end(handed.adapter_id)
            self.prefixes.note(handed.marks)

    def take_back(self, ticket: TicketId) -> None:
        """Counts a request no more. Unknown ones are left in peace."""
        self.acquit(ticket)
        handed = self.in_flight.pop(ticket, None)
        if handed is not None:
            _count_down(self.by_tenant, handed.tenant)
            if handed.adapter_id is not None:
                _count_down(self.by_adapter, handed.adapter_id)

    def ask(self, adapter_id: int, tenant: TenantId, payer: TenantId | None, now_s: float) -> None:
        """Takes note that it is to prepare an adapter."""
        self.asked[adapter_id] = Asked(now_s, payer)
        self.ahead[adapter_id] = Asked(now_s, tenant)

    def may_load_ahead(self, tenant: TenantId, now_s: float) -> bool:
        """Whether it may be asked to prepare one more adapter for a tenant."""
        report = self.report.adapters
        ahead = [a for a in self.ahead.values() if now_s - a.at_s < KEPT_AHEAD_S]
        n_own = sum(asked.tenant == tenant for asked in ahead)
        n_in_use = len(self.by_adapter)
        return may_load_ahead(len(ahead), n_own, n_in_use, report.slots, report.capacity)

    def acquit(self, ticket: TicketId) -> bool:
        """Ends a request's probation; says whether it was on one."""
        was_suspect = self.on_probation == ticket
        if was_suspect:
            self.on_probation = None
        return was_suspect

    def take_report(self, report: EngineReport, now_s: float) -> None:
        """Takes what it says of itself."""
        self.report, self.heard_s, self.is_reachable = report, now_s, True
        self.has_served |= report.state == "ready"
        self.prefixes.capacity = report.prefix_tokens
        adapters = report.adapters
        self.in_memory, self.on_disk = frozenset(adapters.in_memory), frozenset(adapters.on_disk)
        self._settle_asked(frozenset(adapters.coming), now_s)

    def _settle_asked(self, coming: frozenset[int], now_s: float) -> None:
        """What has come was asked for by somebody, unless that was another router."""
        came = [asked for number, asked in self.asked.items() if number in self.in_memory]
        self.loaded_for += [asked.tenant for asked in came if asked.tenant is not None]
        failed = self.report.adapters.failures.keys()
        self.ahead = {
            number: asked
            for number, asked in self.ahead.items()
            if number not in failed and now_s - asked.at_s < KEPT_AHEAD_S
        }
        kept = {
            number: asked
            for number, asked in self.asked.items()
            if number not in self.in_memory
            and number not in failed
            and (number in coming or now_s - asked.at_s < _FORGET_ASKED_S)
        }
        self.asked = {n: Asked(now_s) for n in coming - self.in_memory} | kept


def _count_down(counts: Counter[Any], key: Hashable) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
