"""What a gateway counts: of each request, of each model's moves, of itself."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from serve_app.config_metrics import MetricsSettings
from serve_app.loop_watch import watch_loop
from serve_app.metrics import Counter, Histogram, Metrics
from serve_app.metrics_book import MetricsTarget, TargetBook
from serve_app.names import ModelName, TenantId
from serve_app.telemetry import (
    CACHED_TOKENS,
    CELL_MIGRATIONS,
    COMPLETION_TOKENS,
    COST,
    DURATION,
    IN_FLIGHT,
    INTER_TOKEN,
    LOST_RECORDS,
    MIGRATION_GAP,
    MIGRATIONS,
    MODEL_READY,
    PROMPT_TOKENS,
    RECOMPUTED_TOKENS,
    REQUESTS,
    RESPONSES,
    STOPPED,
    TTFT,
    UNSTORED_RECORDS,
    WAKE,
)
from serve_app.usage import UsageRecord

_KEPT = 4096
"""Bound series that are kept; a request of others looks them up again."""


class RequestSeries:
    """What requests of one tenant for one model or adapter are counted in."""

    __slots__ = (
        "_ends", "_labels", "_metrics", "cached_tokens", "completion_tokens", "cost", "duration",
        "inter_token", "prompt_tokens", "ttft", "wake",
    )  # fmt: skip

    def __init__(self, metrics: Metrics, tenant: str, model: str, adapter: str) -> None:
        self._metrics = metrics
        self._labels = (tenant, model, adapter)
        self._ends: dict[str, Counter] = {}
        self.ttft: Histogram = metrics.histogram(TTFT, tenant, model)
        self.wake: Histogram = metrics.histogram(WAKE, model)
        self.inter_token: Histogram = metrics.histogram(INTER_TOKEN, tenant, model)
        self.duration: Histogram = metrics.histogram(DURATION, tenant, model)
        self.cost: Counter = metrics.counter(COST, tenant, model)
        self.prompt_tokens: Counter = metrics.counter(PROMPT_TOKENS, *self._labels)
        self.cached_tokens: Counter = metrics.counter(CACHED_TOKENS, *self._labels)
        self.completion_tokens: Counter = metrics.counter(COMPLETION_TOKENS, *self._labels)
        # From 0, before the first has ended: Prometheus takes a first value for where it began.
        for outcome in ("finished", "failed"):
            self._ends[outcome] = metrics.counter(REQUESTS, *self._labels, outcome)

    def end(self, outcome: str, record: UsageRecord | None) -> None:
        """Counts a request that has ended, and what it used unless it was refused."""
        known = self._ends.get(outcome)
        if known is None:
            known = self._ends[outcome] = self._metrics.counter(REQUESTS, *self._labels, outcome)
        known.add()
        if record is not None and outcome != "refused":
            self.duration.observe(record.total_s)
            self.cost.add(record.cost_usd)
            self.prompt_tokens.add(record.prompt_tokens)
            self.cached_tokens.add(record.cached_tokens)


class ModelSeries:
    """What a gateway counts of one model's engines that are lost."""

    def __init__(self, metrics: Metrics, model: ModelName) -> None:
        self._moves = {
            cause: metrics.counter(MIGRATIONS, model, cause) for cause in ("died", "failed", "left")
        }
        self._gap = metrics.histogram(MIGRATION_GAP, model)
        self._recomputed = metrics.counter(RECOMPUTED_TOKENS, model)
        self._stopped = metrics.counter(STOPPED, model)
        self._cell_migrations = metrics.counter(CELL_MIGRATIONS, model)

    def move(self, cause: Literal["died", "failed", "left"]) -> None:
        """A request lost its engine, which died, could not run it, or leaves."""
        self._moves[cause].add()

    def change_cell(self) -> None:
        """A request goes on in another cell."""
        self._cell_migrations.add()

    def stop(self) -> None:
        """A request is not tried again: it may be what engines die of."""
        self._stopped.add()

    def go_on(self, gap_s: float, recomputed_tokens: int) -> None:
        """The first token since has come from another one."""
        self._gap.observe(gap_s)
        self._recomputed.add(recomputed_tokens)


class GatewayMetrics:
    """Hands out the series of requests and models; shows how the gateway stands.

    Args:
        metrics: Of this process.
        targets: Knows where every process shows its metrics.
    """

    def __init__(self, metrics: Metrics | None = None, targets: TargetBook | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._targets = targets
        self._reader: ThreadPoolExecutor | None = None
        self._finding: asyncio.Future[list[MetricsTarget]] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._series: dict[tuple[str, ...], RequestSeries] = {}
        self._responses: dict[int, Counter] = {}
        self._models: set[ModelName] = set()
        """Those that are shown as ready or not."""
        self._n_in_flight = 0

    def configure(self, settings: MetricsSettings, show: Callable[[], None]) -> None:
        """Takes settings; watches the running event loop from the first time on.

        Args:
            settings: The metrics' own.
            show: Is to call `show`; called about once a second.
        """
        self._metrics.configure(settings)
        if self._watching is None:
            watching = watch_loop(self._metrics, show)
            self._watching = asyncio.get_running_loop().create_task(watching, name="watch loop")

    def close(self) -> None:
        """Stops watching."""
        if self._watching is not None:
            self._watching.cancel()
        if self._reader is not None:
            self._reader.shutdown(wait=False)

    async def find_targets(self) -> list[MetricsTarget]:
        """Where every process shows its metrics. Waits for the network.

        Whoever asks meanwhile gets the same answer. While the head node is away it takes long, and
        the threads of the event loop, which write usage, are few: it has its own.
        """
        if self._targets is None:
            return []
        if self._finding is None or self._finding.done():
            self._reader = self._reader or ThreadPoolExecutor(1, "metrics targets")
            loop = asyncio.get_running_loop()
            self._finding = loop.run_in_executor(self._reader, self._targets.read)
        return await asyncio.shield(self._finding)

    def of_model(self, model: ModelName) -> ModelSeries:
        """Returns what a model's lost engines are counted in."""
        return ModelSeries(self._metrics, model)

    def of(self, tenant: TenantId, model: str, adapter: str) -> RequestSeries:
        """Returns what a request is counted in."""
        bound = self._metrics.bound
        labels = (bound("tenant", tenant), model, bound("adapter", adapter))
        found = self._series.get(labels)
        if found is None:
            found = RequestSeries(self._metrics, *labels)
            if len(self._series) < _KEPT:
                self._series[labels] = found
        return found

    def answer(self, status: int) -> None:
        """An HTTP answer begins."""
        known = self._responses.get(status)
        if known is None:
            known = self._responses[status] = self._metrics.counter(RESPONSES, str(status))
        known.add()

    def begin(self) -> None:
        """A request for a model has come."""
        self._n_in_flight += 1

    def end(self) -> None:
        """It is gone."""
        self._n_in_flight -= 1

    def show(self, ready: Mapping[ModelName, bool], unstored: int, lost: int) -> None:
        """Sets gauges; called about once a second.

        Args:
            ready: Which models can be served.
            unstored: Usage records that are nowhere safe.
            lost: Usage records for which there was no room.
        """
        for model in self._models - ready.keys():
            self._metrics.forget(MODEL_READY, model)  # Else it would be waited for for ever.
        self._models = set(ready)
        for model, is_ready in ready.items():
            self._metrics.gauge(MODEL_READY, model).set(is_ready)
        self._metrics.gauge(IN_FLIGHT).set(self._n_in_flight)
        self._metrics.gauge(UNSTORED_RECORDS).set(unstored)
        self._metrics.gauge(LOST_RECORDS).set(lost)


UNMEASURED = GatewayMetrics(Metrics(MetricsSettings(enabled=False)))
"""Takes all and keeps nothing."""
