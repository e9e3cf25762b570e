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
    """The gauges of one domain's router."""

    def __init__(self, domain: ModelName, recorder: Recorder) -> None:
        self._domain = {"domain": domain}
        self._recorder = recorder
        self._tenants = TenantLabels()
        self._lagging: set[str] = set()
        """Labels whose lag was not 0 when it was last shown."""

    def show(self, figures: Figures) -> None:
        """Replaces what was shown; who waits no longer has no lag."""
        self._recorder.set(SERVICE_GAP, figures.gap, self._domain)
        self._recorder.set(SERVICE_GAP_BOUND, figures.bound, self._domain)
        lags = dict.fromkeys(self._lagging, 0.0)
        for tenant, lag in figures.lags.items():
            label = self._tenants.of(tenant)
            lags[label] = max(lags.get(label, 0.0), lag)
        for label, lag in lags.items():
            self._recorder.set(COUNTER_LAG, lag, self._domain | {"tenant": label})
        self._lagging = {label for label, lag in lags.items() if lag}
