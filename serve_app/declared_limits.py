"""Limits and prices as the settings declare them."""

from serve_app.config import Settings
from serve_app.config_limits import LimitSpec, PriceSpec
from serve_app.names import ModelName
from serve_app.policy.leases import Scope

_NONE = LimitSpec()
_FREE = PriceSpec()


class DeclaredLimits:
    """A `LimitSource` out of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def limits_of(self, scope: Scope) -> LimitSpec:
        """Returns a scope's limits; all None where it has none."""
        tenant = self.settings.limits_by_tenant.get(scope.tenant)
        if tenant is None:
            return _NONE
        if scope.key is not None:
            return tenant.keys.get(scope.key, _NONE)
        if scope.model is not None:
            return tenant.models.get(scope.model, _NONE)
        return tenant

    def price_of(self, model: ModelName) -> PriceSpec:
        """Returns what a model's tokens cost."""
        return self.settings.prices.get(model, _FREE)
