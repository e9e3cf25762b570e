"""Ways of routing requests with adapters: the platform's own, and two that know less."""

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from deployments.placer import Placer, Wish
from serve_app.policy.adapters import AdapterEngine
from serve_app.policy.turns import Fit

_WHERE_THE_ROUTER_FINDS_IT = "deployments.router.Placer"
OURS = "residency"


class ByLoad(Placer):
    """Sends a request where there is most room; the engine loads what it has not."""

    def place(self, wish: Wish) -> Fit | None:
        """Returns an engine with room."""
        engines = self._fleet.adapter_views(wish.model, wish.tenant)
        able = [e for e in engines if e.is_ready and e.in_flight < e.room]
        return Fit(self._choose(able).engine_id) if able else None

    def prepare_early(self, wish: Wish) -> None:
        """Nobody knows where it will run."""

    def _choose(self, able: Sequence[AdapterEngine]) -> AdapterEngine:
        return min(able, key=lambda engine: (engine.load, engine.engine_id))


class AtRandom(ByLoad):
    """The same, anywhere with room."""

    _rng = random.Random(1)

    def _choose(self, able: Sequence[AdapterEngine]) -> AdapterEngine:
        return self._rng.choice(able)


_ROUTINGS: dict[str, type[Placer]] = {OURS: Placer, "least loaded": ByLoad, "random": AtRandom}
ROUTINGS = tuple(_ROUTINGS)


def routed(name: str) -> AbstractContextManager[Any]:
    """Routers that are made within it route so."""
    return patch(_WHERE_THE_ROUTER_FINDS_IT, _ROUTINGS[name])
