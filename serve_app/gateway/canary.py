"""Chooses which version of a model answers a request, where a canary is tried."""

from serve_app.names import ModelName


class CanaryTurns:
    """Gives a canary its part of the requests, evenly: no chance, no runs of luck."""

    def __init__(self) -> None:
        self._owed: dict[ModelName, float] = {}

    def is_next(self, model: ModelName, percent: float) -> bool:
        """Whether the next request for a model goes to its canary; called once for each."""
        owed = self._owed.get(model, 0.0) + percent
        takes = owed >= 100.0
        self._owed[model] = owed - 100.0 if takes else owed
        return takes
