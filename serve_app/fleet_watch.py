"""Shows Prometheus what a fleet's controller sees, while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.controller import Step
from cluster.fleet_book import METRICS_FILES
from cluster.fleet_metrics import FleetMetrics
from cluster.machine import address_towards
from cluster.policy.fleet import Node, NodeId, Reclaimed
from cluster.policy.reconcile import count_nodes
from serve_app.errors import CommandError
from serve_app.metrics import Metrics
from serve_app.metrics_book import FileBook, RayBook
from serve_app.metrics_server import MetricsServer

_HOST = "127.0.0.1"


class FleetWatch:
    """Keeps a fleet's series at what the last step came to.

    Args:
        metrics: Of this process.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._usd_per_h: dict[NodeId, float] = {}
        self._shown = FleetMetrics(
            metrics, lambda zone: zone.split("/")[0], lambda node: self._usd_per_h[node.id]
        )

    def show(self, step: Step) -> None:
        """Takes what one look at the fleet came to."""
        self._usd_per_h = {entry.id: entry.usd_per_h for entry in step.entries}
        leaving = [
            Node(entry.id, entry.zone, entry.market, entry.asked_s, is_ready=False)
            for entry in step.entries
            if entry.leaves_s is not None
        ]
        self._shown.show(count_nodes(step.entries), leaving)
        for news in step.happenings:
            if isinstance(news, Reclaimed):
                self._shown.lose(news)


@contextmanager
def watch_fleet(
    name: str, port: int | None, folder: Path, ray_head: str = ""
) -> Iterator[FleetWatch]:
    """Serves a fleet's metrics while it runs.

    Args:
        name: The fleet's.
        port: To listen on; None is any that is free.
        folder: The fleet's own.
        ray_head: HOST:PORT of the Ray cluster whose gateways are to list them, and from which
            Prometheus reaches this machine. Where it is empty a file in the folder names them, for
            a Prometheus on this machine.

    Raises:
        CommandError: The port is not free.
    """
    metrics = Metrics()
    watch = FleetWatch(metrics)
    file = folder.parent / METRICS_FILES.replace("*", folder.name)
    book = RayBook(ray_head) if ray_head else FileBook(file)
    try:
        host = address_towards(ray_head) if ray_head else _HOST
        server = MetricsServer(metrics, host, "fleet", f"fleet-{name}", book, port or 0)
    except OSError as error:
        raise CommandError(
            f"metrics cannot be shown at port {port or 'any'}: {error.strerror}. "
            "Choose another port with --metrics-port."
        ) from error
    server.start()
    try:
        yield watch
    finally:
        server.stop()
