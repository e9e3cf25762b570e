"""What a router counts and shows: who waits and runs, how fair it is, which engines there are."""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Set
from typing import Literal

from serve_app.loop_watch import watch_loop
from serve_app.messages import EngineState
from serve_app.metrics import Counter, Histogram, Metrics
from serve_app.names import ModelName, TenantId
from serve_app.policy.fairness_figures import Figures
from serve_app.telemetry import (
    ADAPTER_REQUESTS,
    COUNTER_LAG,
    ENGINES,
    ENGINES_LOST,
    FAILED_STARTS,
    GRANTS,
    QUEUE_WAIT,
    REFUSALS,
    RUNNING,
    SERVICE_GAP,
    SERVICE_GAP_BOUND,
    WAITING,
    WAITING_LIMIT,
    WANTED_ENGINES,
    Metric,
)

Cause = Literal["left", "failed", "silent"]
"""Why an engine is gone: it was drained; it said that it failed; its process is no more."""
_CAUSES: tuple[Cause, ...] = ("left", "failed", "silent")
RefusalKind = Literal["crowded", "overdue", "outdated"]
"""As `messages.Refuse` has it."""
_REFUSALS: tuple[RefusalKind, ...] = ("crowded", "overdue", "outdated")
_STATES: tuple[EngineState, ...] = ("loading", "ready", "draining", "failed")


class RouterMetrics:
    """The metrics of one domain's router."""

    def __init__(self, domain: ModelName, metrics: Metrics | None = None) -> None:
        self._domain = domain
        self.metrics = metrics or Metrics()
        self._shown: dict[Metric, set[str]] = {}
        """Tenants' labels that were not 0 when they were last shown."""
        self._models: set[ModelName] = set()
        self._wanted: set[ModelName] = set()
        self._counters: dict[tuple[Metric, str, str], Counter] = {}
        self._waits: dict[tuple[str, ModelName], Histogram] = {}

    async def watch(self) -> None:
        """Watches the event loop until cancelled."""
        await watch_loop(self.metrics)

    def grant(self, tenant: TenantId, model: ModelName, waited_s: float, *, express: bool) -> None:
        """A request goes to an engine."""
        key = (self.metrics.bound("tenant", tenant), model)
        known = self._waits.get(key)
        if known is None:
            known = self._waits[key] = self.metrics.histogram(QUEUE_WAIT, *key)
        known.observe(waited_s)
        self._count(GRANTS, model, "express" if express else "room")

    def refuse(self, model: ModelName, reason: RefusalKind) -> None:
        """A request is refused."""
        self._count(REFUSALS, model, reason)

    def look_up_adapter(self, model: ModelName, *, is_hit: bool) -> None:
        """A request with an adapter has come."""
        self._count(ADAPTER_REQUESTS, model, "hit" if is_hit else "miss")

    def lose_engine(self, model: ModelName, cause: Cause) -> None:
        """An engine is gone."""
        self._count(ENGINES_LOST, model, cause)

    def _count(self, metric: Metric, model: ModelName, kind: str) -> None:
        known = self._counters.get((metric, model, kind))
        if known is None:
            known = self.metrics.counter(metric, model, kind)
            self._counters[metric, model, kind] = known
        known.add()

    # --- what is shown about once a second --------------------------------------------------

    def show_fairness(self, figures: Figures) -> None:
        """Replaces what was shown; who waits no longer has no lag."""
        self.metrics.gauge(SERVICE_GAP, self._domain).set(figures.gap)
        self.metrics.gauge(SERVICE_GAP_BOUND, self._domain).set(figures.bound)
        lags: dict[str, float] = {}
        for tenant, lag in figures.lags.items():
            label = self.metrics.bound("tenant", tenant)
            lags[label] = max(lags.get(label, 0.0), lag)
        self._show(COUNTER_LAG, lags)

    def show_crowd(
        self, waiting: Mapping[TenantId, int], running: Iterable[Mapping[TenantId, int]], most: int
    ) -> None:
        """Replaces what was shown.

        Args:
            waiting: Requests that wait, by tenant.
            running: Those of each engine, by tenant.
            most: How many may wait.
        """
        self.metrics.gauge(WAITING_LIMIT, self._domain).set(most)
        self._show(WAITING, self._tally([waiting]))
        self._show(RUNNING, self._tally(running))

    def show_engines(self, engines: Iterable[tuple[ModelName, EngineState]]) -> None:
        """Replaces what was shown."""
        counts = Tally(engines)
        self._begin_to_count({model for model, _ in counts})
        for model in self._models:
            for state in _STATES:
                self.metrics.gauge(ENGINES, model, state).set(counts[model, state])

    def show_wanted(self, engines: Mapping[ModelName, int]) -> None:
        """Replaces how many engines models are to have: none, where they are served no more.

        One that never had any is shown with none, so that they can be missed.
        """
        self._wanted |= engines.keys()
        self._begin_to_count(engines.keys())
        for model in self._wanted:
            self.metrics.gauge(WANTED_ENGINES, model).set(engines.get(model, 0))

    def _begin_to_count(self, models: Set[ModelName]) -> None:
        """From 0: Prometheus takes a counter's first value for where it began."""
        for model in models - self._models:
            self._models.add(model)
            self.metrics.gauge(FAILED_STARTS, model)
            for state in _STATES:
                self.metrics.gauge(ENGINES, model, state)
            for cause in _CAUSES:
                self.metrics.counter(ENGINES_LOST, model, cause)
            for reason in _REFUSALS:
                self.metrics.counter(REFUSALS, model, reason)
            for kind in ("room", "express"):
                self.metrics.counter(GRANTS, model, kind)

    def _tally(self, counts: Iterable[Mapping[TenantId, int]]) -> dict[str, float]:
        by_label: dict[str, float] = {}
        for by_tenant in counts:
            for tenant, count in by_tenant.items():
                label = self.metrics.bound("tenant", tenant)
                by_label[label] = by_label.get(label, 0) + count
        return by_label

    def _show(self, metric: Metric, values: Mapping[str, float]) -> None:
        before = self._shown.get(metric, set())
        for label in before | values.keys():
            self.metrics.gauge(metric, self._domain, label).set(values.get(label, 0.0))
        self._shown[metric] = {label for label, value in values.items() if value}
