"""What the models and adapters of a gateway are called, and which of them a caller may see."""

from collections.abc import Iterable, Mapping
from itertools import islice

from serve_app.adapter_registry import Adapter, AdapterRegistry
from serve_app.catalog import Caller
from serve_app.config_model import ModelSettings
from serve_app.gateway.adapter_choice import may_use
from serve_app.gateway.error_body import ApiError
from serve_app.gateway.model_cards import Card, make_adapter_cards, make_base_card
from serve_app.gateway.served_model import ServedModel
from serve_app.names import ModelName


class Directory:
    """Finds what a name means for a caller.

    Args:
        models: Those that are served, as they come and go.
        registry: Their adapters.
    """

    def __init__(self, models: Mapping[ModelName, ServedModel], registry: AdapterRegistry) -> None:
        self._models = models
        self._registry = registry
        self._base_of: dict[str, ModelName] = {}

    def configure(self, models: Iterable[ModelSettings]) -> None:
        """Takes the names and aliases of models."""
        self._base_of = {name: m.name for m in models for name in m.names}

    def resolve(self, model_name: str | None, caller: Caller) -> tuple[ModelName, Adapter | None]:
        """Returns the base model and the adapter that a name means; None is the base model itself.

        Whether a model does not exist or is another tenant's is not told apart.

        Raises:
            ApiError: 400 none is named though there are several; 404 there is none for this caller.
        """
        if model_name is None and len(self._models) == 1:
            model_name = next(iter(self._models))
        if model_name is None:
            known = self._names_for(caller)
            raise ApiError(
                400, f"The parameter 'model' is missing. Name one of: {known}.", param="model"
            )
        base = self._base_of.get(model_name)
        if base is not None and caller.tenant.may_use(model_name, base):
            return base, None
        adapter = self._find_adapter(model_name) if base is None else None
        if adapter is None or adapter.base not in self._models or not may_use(caller, adapter):
            raise self.no_such_model(model_name, caller)
        return adapter.base, adapter

    def _find_adapter(self, name: str) -> Adapter | None:
        """The base model may be called by an alias, too."""
        base, separator, rest = name.partition(":")
        model = self._base_of.get(base) if separator else None
        return self._registry.find(f"{model}:{rest}" if model is not None else name)

    def _names_for(self, caller: Caller) -> str:
        return ", ".join(sorted(card["id"] for card in self.model_cards(caller))) or "none"

    def no_such_model(self, model_name: str, caller: Caller) -> ApiError:
        """Says that there is no such model, and which there are for this caller."""
        known = self._names_for(caller)
        return ApiError(
            404,
            f"The model {model_name[:200]!r} does not exist or you do not have access to it. "
            f"Models served here: {known}.",
            param="model",
            code="model_not_found",
        )

    def model_cards(self, caller: Caller) -> list[Card]:
        """Every model and alias that the caller may use, as `/v1/models` lists them."""
        return [
            make_base_card(alias, name, model.since_s, model.max_model_len)
            for name, model in self._models.items()
            for alias in model.settings.names
            if caller.tenant.may_use(alias, name)
        ]

    def adapter_cards(self, caller: Caller, after: str, most: int) -> tuple[list[Card], bool]:
        """Adapters that the caller may use, by name, and whether there are more behind them.

        Those of families are there once they were used.

        Args:
            caller: Who asks.
            after: Only names behind this one.
            most: No more adapters than these.
        """
        known = self._registry.known(after)
        usable = (a for a in known if a.base in self._models and may_use(caller, a))
        first = list(islice(usable, most + 1))
        cards = [card for adapter in first[:most] for card in self._cards_of(adapter)]
        return cards, len(first) > most

    def find_card(self, name: str, caller: Caller) -> Card:
        """One model or adapter as `/v1/models` lists it.

        Raises:
            ApiError: 404; there is none for this caller.
        """
        adapter = self._find_adapter(name)
        cards = self.model_cards(caller)
        if adapter is not None and may_use(caller, adapter):
            # Its name may begin with an alias of the base model, which no list has.
            cards += [card | {"id": name} for card in self._cards_of(adapter)]
        found = next((card for card in cards if card["id"] == name), None)
        if found is None:
            raise self.no_such_model(name, caller)
        return found

    def _cards_of(self, adapter: Adapter) -> list[Card]:
        """None of a family's adapter that nobody has used: nobody knows whether it is there."""
        model, version = self._models.get(adapter.base), self._registry.current(adapter)
        if model is None or (version is None and adapter.origin == "family"):
            return []
        return make_adapter_cards(adapter, version, model.max_model_len)
