"""What is shown of a fleet."""

from cluster.fleet_metrics import FleetMetrics
from cluster.policy.fleet import Market, Node, NodeId, Reclaimed, ZoneId
from serve_app.metrics import Metrics
from serve_app.telemetry import FLEET_COST, NODES, RECLAIMS

EAST, WEST = ZoneId("aws/east/a"), ZoneId("gcp/west/b")


def make_node(name: str, zone: ZoneId, market: Market = "spot", *, is_ready: bool = True) -> Node:
    return Node(NodeId(name), zone, market, 0.0, is_ready)


def make() -> tuple[FleetMetrics, Metrics]:
    metrics = Metrics()
    prices = {"spot": 2.0, "on-demand": 7.0}
    shown = FleetMetrics(metrics, lambda z: z.split("/")[0], lambda node: prices[node.market])
    return shown, metrics


def test_nodes_and_cost_are_shown_by_place_and_market() -> None:
    shown, metrics = make()
    nodes = [make_node("1", EAST), make_node("2", EAST, is_ready=False)]
    shown.show([*nodes, make_node("3", WEST, "on-demand")])
    assert metrics.value(NODES, "aws", EAST, "spot", "ready") == 1
    assert metrics.value(NODES, "aws", EAST, "spot", "starting") == 1
    assert metrics.value(FLEET_COST, "aws", EAST, "spot") == 4.0
    assert metrics.value(FLEET_COST, "gcp", WEST, "on-demand") == 7.0


def test_nodes_that_leave_cost_until_they_are_gone() -> None:
    shown, metrics = make()
    shown.show([make_node("1", EAST)], [make_node("2", EAST)])
    assert metrics.value(NODES, "aws", EAST, "spot", "ready") == 1
    assert metrics.value(NODES, "aws", EAST, "spot", "leaving") == 1
    assert metrics.value(FLEET_COST, "aws", EAST, "spot") == 4.0


def test_a_place_without_nodes_shows_none() -> None:
    shown, metrics = make()
    shown.show([make_node("1", EAST)])
    shown.show([])
    assert metrics.value(NODES, "aws", EAST, "spot", "ready") == 0
    assert metrics.value(FLEET_COST, "aws", EAST, "spot") == 0


def test_reclaims_are_counted_from_none() -> None:
    """A counter that begins with a storm has not grown, for Prometheus."""
    shown, metrics = make()
    shown.show([make_node("1", EAST), make_node("2", WEST, "on-demand")])
    assert f'arriero_fleet_reclaims_total{{cloud="aws",zone="{EAST}"}} 0.0' in metrics.render()
    assert WEST not in metrics.render().split("arriero_fleet_reclaims_total", 1)[1]
    shown.lose(Reclaimed(EAST, 1, 1))
    shown.show([])
    assert metrics.value(RECLAIMS, "aws", EAST) == 1


def test_reclaims_are_counted() -> None:
    shown, metrics = make()
    shown.lose(Reclaimed(EAST, 2, 3))
    shown.lose(Reclaimed(EAST, 1, 1))
    assert metrics.value(RECLAIMS, "aws", EAST) == 3
