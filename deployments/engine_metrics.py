"""What an engine counts and shows, whatever its core is."""

from serve_app.messages import AdapterReport, EngineLoad
from serve_app.metrics import Counter, Metrics
from serve_app.names import ModelName
from serve_app.telemetry import (
    ADAPTER_EVICTIONS,
    ADAPTER_LOAD,
    ADAPTER_LOADS,
    ADAPTERS_RESIDENT,
    BATCH,
    BATCH_LIMIT,
    ENGINE_TOKENS,
    ENGINE_WAITING,
    KV_USED,
)


class EngineMetrics:
    """The metrics of one engine."""

    def __init__(self, model: ModelName, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics()
        self._model = model
        self.tokens: Counter = self.metrics.counter(ENGINE_TOKENS, model)

    def show(self, load: EngineLoad, max_running: int, adapters: AdapterReport | None) -> None:
        """Replaces what was shown.

        Args:
            load: What it is doing.
            max_running: Places in its batch.
            adapters: Which are where; None where it takes none.
        """
        for metric, value in (
            (BATCH, load.running),
            (ENGINE_WAITING, load.waiting),
            (BATCH_LIMIT, max_running),
            (KV_USED, load.kv_usage),
        ):
            self.metrics.gauge(metric, self._model).set(value)
        if adapters is not None:
            for tier, held in (
                ("disk", adapters.on_disk),
                ("memory", adapters.in_memory),
                ("slots", adapters.active),
            ):
                self.metrics.gauge(ADAPTERS_RESIDENT, self._model, tier).set(len(held))

    def adapters(self) -> "AdapterSeries":
        """Returns what its adapters are counted in."""
        return AdapterSeries(self._model, self.metrics)


class AdapterSeries:
    """What is counted of adapters that come and go. Of the engine's event loop."""

    def __init__(self, model: ModelName, metrics: Metrics) -> None:
        self._loaded = metrics.counter(ADAPTER_LOADS, model, "loaded")
        self._failed = metrics.counter(ADAPTER_LOADS, model, "failed")
        self._took = metrics.histogram(ADAPTER_LOAD, model)
        self._evicted = metrics.counter(ADAPTER_EVICTIONS, model)

    def load(self, took_s: float) -> None:
        """One has come."""
        self._loaded.add()
        self._took.observe(took_s)

    def fail(self) -> None:
        """One could not be brought."""
        self._failed.add()

    def evict(self) -> None:
        """One has left for another."""
        self._evicted.add()
