"""What Ray's own message says, as demand."""

from typing import Any

from ray.core.generated import autoscaler_pb2 as generated

from cluster.policy.demand import Demand
from cluster.policy.fleet import NodeId
from cluster.ray_demand import read_demand

messages: Any = generated


def _node(name: str, free: float, status: str = "RUNNING") -> Any:
    return messages.NodeState(
        status=messages.NodeStatus.Value(status),
        labels={"arriero-node": name} if name else {},
        total_resources={"GPU": 4.0, "node:10.0.0.1": 1.0, "memory": 1e9},
        available_resources={"GPU": free, "node:10.0.0.1": 0.5, "memory": 5e8},
    )


def _request(**bundle: float) -> Any:
    return messages.ResourceRequest(resources_bundle=bundle)


def test_waiting_tasks_actors_and_groups_are_read() -> None:
    state = messages.ClusterResourceState(
        pending_resource_requests=[
            messages.ResourceRequestByCount(request=_request(CPU=0.5), count=2)
        ],
        pending_gang_resource_requests=[
            messages.GangResourceRequest(
                requests=[_request(GPU=1.0), _request(GPU=1.0, CPU=1.0)], details="a:STRICT_PACK|P"
            ),
            messages.GangResourceRequest(
                requests=[_request(GPU=1.0), _request(GPU=2.0)], details="a:SPREAD|PENDING"
            ),
        ],
    )
    assert read_demand(state, "arriero-node") == Demand(
        ({"CPU": 0.5}, {"CPU": 0.5}, {"GPU": 2.0, "CPU": 1.0}, {"GPU": 1.0}, {"GPU": 2.0})
    )


def test_nodes_that_hold_something_work_and_those_that_drain_are_left_out() -> None:
    state = messages.ClusterResourceState(
        node_states=[
            _node("", 1.0),
            _node("f-1", 3.0),
            _node("f-2", 4.0, "IDLE"),
            _node("f-3", 0.0, "DRAINING"),
            _node("f-4", 0.0, "DEAD"),
        ]
    )
    demand = read_demand(state, "arriero-node")
    assert demand.working == {NodeId("f-1")}
    assert [free["GPU"] for free in demand.room] == [1.0, 3.0]
    assert demand.shape == {"GPU": 4.0, "memory": 1e9}
