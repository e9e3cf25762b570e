"""Shows Prometheus what a fleet's controller sees, while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.controller import Step
from cluster.fleet_metrics import FleetMetrics
from cluster.machine import address_towards
from cluster.policy.fleet import NodeId, Reclaimed
from cluster.policy.reconcile import count_nodes
from serve_app.errors import CommandError
from serve_app.metrics import Metrics
from serve_app.metrics_book import RayBook
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
        """Takes what one look at the fleet came to. Nodes that leave are not counted."""
        self._usd_per_h = {entry.id: entry.usd_per_h for entry in step.entries}
        self._shown.show(count_nodes(step.entries))
        for news in step.happenings:
            if isinstance(news, Reclaimed):
                self._shown.lose(news)


@contextmanager
def watch_fleet(name: str, port: int | None, ray_head: str = "") -> Iterator[FleetWatch]:
    """Serves a fleet's metrics while it runs.

    Args:
        name: The fleet's.
        port: To listen on; None is any that is free where a platform lists them, else none at all.
        ray_head: HOST:PORT of the Ray cluster whose gateways are to list them, and from which
            Prometheus reaches this machine. Empty lists them nowhere; they are for this machine.

    Raises:
        CommandError: The port is not free.
    """
    metrics = Metrics()
    watch = FleetWatch(metrics)
    if port is None and not ray_head:
        yield watch
        return
    book = RayBook(ray_head) if ray_head else None
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
