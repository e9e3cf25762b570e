"""What serves on a fleet's nodes: asked of Ray, or of each cell.

A node carries its fleet name as a Ray label, so that the machine and the Ray node are known to be
the same. `ray drain-node`, by whomever it was called, shows here: a reclaim agent that has heard
its cloud's notice is how a controller far away hears of it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import httpx

from cluster.policy.demand import Demand
from cluster.policy.fleet import NodeId
from cluster.policy.reconcile import Machine, Pulse
from cluster.provisioner import ProvisionerAwayError
from cluster.ray_demand import read_demand

NODE_LABEL = "arriero-node"
_RPC_TIMEOUT_S = 10.0
_NO_DEADLINE_S = 600.0
_AT_ONCE = 32


class Members(Protocol):
    """The fleet's nodes as they serve."""

    def observe(self, machines: Sequence[Machine]) -> Mapping[NodeId, Pulse]:
        """Return a pulse of each node that serves.

        Raises:
            ProvisionerAwayError: Nothing is known now.
        """

    def demand(self) -> Demand:
        """Return what waits for room, and which nodes work.

        Raises:
            ProvisionerAwayError: Nothing is known now.
        """

    def drain(self, node: NodeId, left_s: float, why: str) -> None:
        """Have a node finish what it does. One that does not serve is no error.

        Raises:
            ProvisionerAwayError: Ask again.
        """


class RayMembers:
    """Nodes of one Ray cluster, whose head's address is known.

    Args:
        address: HOST:PORT of Ray's head.
        clock: Seconds since 1970.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.time) -> None:
        self._address = address
        self._clock = clock
        self._client: Any = None

    def observe(self, machines: Sequence[Machine]) -> Mapping[NodeId, Pulse]:
        """Return a pulse of each node that Ray counts as alive, or that has drained away.

        A node with nothing to do goes the moment that it is told to drain. Nobody may have looked.
        """
        draining = self._call("get_draining_nodes", timeout=_RPC_TIMEOUT_S)
        now_s = self._clock()
        pulses: dict[NodeId, Pulse] = {}
        for ray_id, name, state in self._nodes():
            leaves_ms = draining.get(ray_id)
            if state == "drained":
                pulses[name] = Pulse(now_s, is_over=True)
            elif leaves_ms is None:
                pulses[name] = Pulse()
            else:
                pulses[name] = Pulse(leaves_ms / 1000 if leaves_ms else now_s + _NO_DEADLINE_S)
        return pulses

    def demand(self) -> Demand:
        """Return what Ray tells its own autoscaler, if there were one."""
        from ray.core.generated import autoscaler_pb2 as generated

        messages: Any = generated
        reply = messages.GetClusterResourceStateReply()
        reply.ParseFromString(self._call("get_cluster_resource_state"))
        return read_demand(reply.cluster_resource_state, NODE_LABEL)

    def drain(self, node: NodeId, left_s: float, why: str) -> None:
        """Tell Ray that a node leaves; Serve then starts replacements before it stops replicas."""
        from ray.core.generated import autoscaler_pb2 as generated

        messages: Any = generated
        # Ray refuses to drain a node that is not idle for any other reason.
        reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        leaves_ms = int((self._clock() + left_s) * 1000)
        for ray_id, name in self.names().items():
            if name == node:
                self._call("drain_node", ray_id, reason, why, leaves_ms)

    def names(self) -> dict[str, NodeId]:
        """Return the names of the nodes that Ray counts as alive, by Ray's ids."""
        return {ray_id: name for ray_id, name, state in self._nodes() if state == "alive"}

    def _nodes(self) -> list[tuple[str, NodeId, str]]:
        """Return Ray's id, the name, and `alive` or `drained`, of nodes that are one of these."""
        from ray.core.generated import gcs_pb2 as generated

        messages: Any = generated
        found: list[tuple[str, NodeId, str]] = []
        for ray_id, info in self._call("get_all_node_info", timeout=_RPC_TIMEOUT_S).items():
            is_alive = info.state == messages.GcsNodeInfo.ALIVE
            death = info.death_info
            has_drained = death.reason == death.AUTOSCALER_DRAIN_PREEMPTED
            if NODE_LABEL in info.labels and (is_alive or has_drained):
                name = NodeId(info.labels[NODE_LABEL])
                found.append((ray_id.hex(), name, "alive" if is_alive else "drained"))
        return found

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        from ray import _raylet
        from ray.exceptions import RayError

        gcs: Any = _raylet
        try:
            self._client = self._client or gcs.GcsClient(address=self._address)
            return getattr(self._client, name)(*args, **kwargs)
        except (RayError, gcs.RpcError, OSError) as error:
            self._client = None
            raise ProvisionerAwayError(
                f"Ray's head at {self._address} does not answer: {str(error)[:200]}"
            ) from error


class CellMembers:
    """Nodes that are cells of their own: each is asked whether it is ready.

    Args:
        port: Of the cells' gateways.
        client: To ask with.
    """

    def __init__(self, port: int, client: httpx.Client | None = None) -> None:
        self._port = port
        self._client = client or httpx.Client(timeout=3.0)

    def observe(self, machines: Sequence[Machine]) -> Mapping[NodeId, Pulse]:
        """Return a pulse of each cell that says of itself whether it is ready.

        A cell ends at the notice that its cloud takes it, and says so: another one comes meanwhile.
        One that is not ready lacks an engine, which may be starting.
        """
        asked = [machine for machine in machines if machine.state == "up" and machine.address]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            pulses = list(pool.map(lambda machine: self._ask(machine.address), asked))
        return {m.id: pulse for m, pulse in zip(asked, pulses, strict=True) if pulse is not None}

    def demand(self) -> Demand:
        """Return nothing: what waits within a cell is that cell's affair."""
        return Demand()

    def drain(self, node: NodeId, left_s: float, why: str) -> None:
        """Leave a cell the time that is left; its front sends it nothing once it is ending."""

    def _ask(self, address: str) -> Pulse | None:
        try:
            answer = self._client.get(f"http://{address}:{self._port}/ready")
            said = answer.json() if answer.status_code == 503 else {}
        except (httpx.HTTPError, ValueError):
            return None
        if answer.status_code == 200:
            return Pulse()
        if not isinstance(said, dict) or "ready" not in said:
            return None  # what stands before a gateway that is gone answers, too
        leaves_s = said.get("leaves_s")
        if isinstance(leaves_s, int | float):
            return Pulse(float(leaves_s))
        return Pulse(is_ready=False)
