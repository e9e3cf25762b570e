"""Shows a fleet's nodes and their cost; called by whoever keeps the fleet."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable

from cluster.policy.fleet import Node, Reclaimed, ZoneId
from serve_app.metrics import Metrics
from serve_app.telemetry import FLEET_COST, NODES, RECLAIMS, Metric


class FleetMetrics:
    """The metrics of one fleet.

    Args:
        metrics: Of the process that keeps the fleet.
        cloud_of: Returns a zone's cloud.
        usd_per_h: Returns what a node costs at this moment.
    """

    def __init__(
        self,
        metrics: Metrics,
        cloud_of: Callable[[ZoneId], str],
        usd_per_h: Callable[[Node], float],
    ) -> None:
        self._metrics = metrics
        self._cloud_of = cloud_of
        self._usd_per_h = usd_per_h
        self._shown: dict[Metric, set[tuple[str, ...]]] = {}

    def show(self, nodes: Iterable[Node], leaving: Iterable[Node] = ()) -> None:
        """Replaces what was shown; called whenever the fleet was looked at.

        Args:
            nodes: Those that stay.
            leaving: Those that leave, and are paid for until they are gone.
        """
        counts: Tally[tuple[str, ...]] = Tally()
        costs: Tally[tuple[str, ...]] = Tally()
        staying = [(node, "ready" if node.is_ready else "starting") for node in nodes]
        for node, state in [*staying, *((node, "leaving") for node in leaving)]:
            cloud = self._cloud_of(node.zone)
            if node.market == "spot":  # From 0: Prometheus takes a first value for its beginning.
                self._metrics.counter(RECLAIMS, cloud, node.zone)
            place = (cloud, node.zone, node.market)
            counts[*place, state] += 1
            costs[place] += self._usd_per_h(node)  # type: ignore[assignment]  # a sum of dollars
        self._replace(NODES, counts)
        self._replace(FLEET_COST, costs)

    def lose(self, reclaimed: Reclaimed) -> None:
        """A cloud took nodes back."""
        zone = reclaimed.zone
        self._metrics.counter(RECLAIMS, self._cloud_of(zone), zone).add(reclaimed.n_nodes)

    def _replace(self, metric: Metric, values: Tally[tuple[str, ...]]) -> None:
        for labels in self._shown.get(metric, set()) | values.keys():
            self._metrics.gauge(metric, *labels).set(values[labels])
        self._shown[metric] = set(values)
