"""Sums up what tenants are served in all cells, so that each cell may count it for their turns.

Inputs: what each cell's routers say that they have served since they started.

The rule: what a router has served beyond what it said before is served in its cell. A cell is told
what all others have served since the bank started. What was served before a router's first word to
this bank is not counted; a router that does not know this bank has told others of some tenants, so
its word counts from when it does.

Invariants (each a property test of that name):

1. others_are_told_all: a cell is told exactly what the others have served since their first word,
   as far as they have told it.
2. saying_again_changes_nothing: nor does a router that starts anew.
3. few_are_kept: no more tenants of a domain than is said, and those that one message adds.
4. forgetting_charges_nobody: a cell is never told more than others have served.

Source: our own.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from serve_app.cell_messages import ServedElsewhere, TellService


@dataclass
class _Cell:
    run: str = ""
    said: dict[str, float] = field(default_factory=dict)
    """What its router said last, by tenant."""
    served: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By tenant, since its first word."""


@dataclass
class _Domain:
    name: str
    """Of the bank, for this domain."""
    served: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By tenant, in all cells."""
    cells: defaultdict[str, _Cell] = field(default_factory=lambda: defaultdict(_Cell))
    changed: dict[str, int] = field(default_factory=dict)
    """At which turn a tenant's sum was last changed."""


class ServiceBank:
    """What is served in all cells, by fairness domain and tenant.

    Args:
        name: Of this bank's process.
        most_tenants: Of a domain, that are kept.
    """

    def __init__(self, name: str, most_tenants: int = 50_000) -> None:
        self._name = name
        self._most_tenants = most_tenants
        self._turn = 0
        self._n_forgotten = 0
        self._domains: dict[str, _Domain] = {}

    def tell(self, told: TellService) -> ServedElsewhere:
        """Take what a router has served; return what other cells have."""
        self._turn += 1
        domain = self._domain_of(told.domain)
        cell = domain.cells[told.cell]
        is_known = told.bank == domain.name
        if is_known:
            self._take(domain, cell, told)
        heard = told.heard if is_known else 0
        elsewhere = {
            tenant: domain.served[tenant] - cell.served.get(tenant, 0.0)
            for tenant, turn in domain.changed.items()
            if turn > heard
        }
        return ServedElsewhere(domain.name, self._turn, elsewhere)

    def _domain_of(self, name: str) -> _Domain:
        domain = self._domains.get(name)
        if domain is not None and len(domain.served) > self._most_tenants:
            self._n_forgotten += 1
            domain = None
        if domain is None:
            suffix = f"/{self._n_forgotten}" if self._n_forgotten else ""
            domain = self._domains[name] = _Domain(f"{self._name}{suffix}")
        return domain

    def _take(self, domain: _Domain, cell: _Cell, told: TellService) -> None:
        is_first = cell.run != told.run
        if is_first:
            cell.run, cell.said = told.run, {}
        for tenant, served in told.served.items():
            more = 0.0 if is_first else served - cell.said.get(tenant, 0.0)
            cell.said[tenant] = served
            if more:
                cell.served[tenant] += more
                domain.served[tenant] += more
                domain.changed[tenant] = self._turn
