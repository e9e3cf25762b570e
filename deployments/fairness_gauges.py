"""Shows a router's fairness as metrics."""

from serve_app.names import ModelName
from serve_app.policy.fairness_figures import Figures
from serve_app.telemetry import (
    COUNTER_LAG,
    SERVICE_GAP,
    SERVICE_GAP_BOUND,
    Recorder,
    TenantLabels,
)


class FairnessGauges:
    """The gauges of one model's router."""

    def __init__(self, model_name: ModelName, recorder: Recorder) -> None:
        self._model = {"model": model_name}
        self._recorder = recorder
        self._tenants = TenantLabels()
        self._lagging: set[str] = set()
        """Labels whose lag was not 0 when it was last shown."""

    def show(self, figures: Figures) -> None:
        """Replaces what was shown; who waits no longer has no lag."""
        self._recorder.set(SERVICE_GAP, figures.gap, self._model)
        self._recorder.set(SERVICE_GAP_BOUND, figures.bound, self._model)
        lags = dict.fromkeys(self._lagging, 0.0)
        for tenant, lag in figures.lags.items():
            label = self._tenants.of(tenant)
            lags[label] = max(lags.get(label, 0.0), lag)
        for label, lag in lags.items():
            self._recorder.set(COUNTER_LAG, lag, self._model | {"tenant": label})
        self._lagging = {label for label, lag in lags.items() if lag}
