"""What a reclaim agent counts."""

from serve_app.metrics import Metrics
from serve_app.telemetry import RECLAIM_LEFT, RECLAIM_NOTICES, RECLAIM_UNANSWERED


class ReclaimMetrics:
    """The metrics of one node's watch, each shown from 0 on.

    Args:
        metrics: Of this process.
        cloud: The node's.
    """

    def __init__(self, metrics: Metrics, cloud: str) -> None:
        self.likely = metrics.counter(RECLAIM_NOTICES, cloud, "likely")
        self.certain = metrics.counter(RECLAIM_NOTICES, cloud, "certain")
        self.left_s = metrics.gauge(RECLAIM_LEFT, cloud)
        self.unanswered = metrics.counter(RECLAIM_UNANSWERED, cloud)
