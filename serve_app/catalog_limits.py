"""Limits and prices as tenants, keys and settings have them at this moment."""

from collections.abc import Mapping

from serve_app.catalog import Catalog
from serve_app.config_limits import LimitSpec, PriceSpec, find_price
from serve_app.config_tenants import Budgets, Limits, TenantSettings
from serve_app.names import ModelName
from serve_app.policy.leases import Scope

_NONE = LimitSpec()


class CatalogLimits:
    """A `LimitSource` over a catalog.

    Args:
        catalog: May change at any time; what it says counts from the next request on.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.prices: Mapping[str, PriceSpec] = {}
        """By base model, or `model:adapter`; a model that is not listed is free."""
        self._catalog = catalog
        self._made: dict[tuple[int, int], tuple[Limits, Budgets | None, LimitSpec]] = {}
        """What was made of limits and budgets, by their identities, which it keeps in use."""

    def limits_of(self, scope: Scope) -> LimitSpec:
        """Returns a scope's limits; all None where it has none."""
        if scope.key is not None:
            return self._join(self._catalog.limits_of_key(scope.key), None)
        tenant = self._catalog.tenant(scope.tenant)
        return _NONE if tenant is None else self._limits_in(tenant.settings, scope.model)

    def price_of(self, model: ModelName, adapter: str = "") -> PriceSpec:
        """Returns what tokens of a model, or of its adapter of this full name, cost."""
        return find_price(self.prices, model, adapter)

    def forget(self) -> None:
        """Drops what was made of limits that may not hold any more."""
        self._made.clear()

    def _limits_in(self, terms: TenantSettings, model: ModelName | None) -> LimitSpec:
        if model is None:
            return self._join(terms.limits, terms.budgets)
        on_model = terms.limits.models.get(model)
        return _NONE if on_model is None else self._join(on_model, None)

    def _join(self, limits: Limits, budgets: Budgets | None) -> LimitSpec:
        key = (id(limits), id(budgets))
        if key not in self._made:
            self._made[key] = (limits, budgets, _make(limits, budgets))
        return self._made[key][2]


def _make(limits: Limits, budgets: Budgets | None) -> LimitSpec:
    fields = limits.model_dump(exclude={"models"})
    if budgets is not None:
        fields |= budgets.model_dump()
    return LimitSpec(**fields)
