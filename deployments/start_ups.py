"""Counts what a router's engines fail to start, and has each wait before the next one tries."""

from collections import Counter

from serve_app.messages import EngineReport, EngineState, HoldOn
from serve_app.metrics import Metrics
from serve_app.names import ModelName
from serve_app.policy.start_ups import choose_hold_s
from serve_app.telemetry import FAILED_STARTS


class StartUps:
    """Of one router's models.

    Args:
        metrics: Takes the count of each model.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._n_failed: Counter[ModelName] = Counter()

    def note(self, report: EngineReport, before: EngineState | None) -> HoldOn | None:
        """Takes an engine's report; returns what it is to be told if it has failed to start.

        Args:
            report: Its newest.
            before: What it said the last time; None if that was nothing.
        """
        if report.state == before:
            return None
        if report.state == "ready":
            self._show(report.model, 0)
        elif report.state == "failed" and before in (None, "loading"):
            n_failed = self._n_failed[report.model] + 1
            self._show(report.model, n_failed)
            return HoldOn(choose_hold_s(n_failed), n_failed)
        return None

    def _show(self, model: ModelName, n_failed: int) -> None:
        if n_failed == self._n_failed[model]:
            return
        self._n_failed[model] = n_failed
        self._metrics.gauge(FAILED_STARTS, model).set(n_failed)
