"""The nodes of `bench.node_loop` for Ray's own autoscaler: a node provider outside of Ray.

Ray gives tags to what it asks for and reads them again, so they are written down before the node
is asked for. Both of Ray's autoscalers can use it: the first knows Ray nodes by address, for which
several nodes of one machine use Ray's id; the second by an id of the cloud's, which is a node's
name.
"""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.autoscaler import node_provider, tags

from bench.node_autoscaling import HEAD, HEAD_KIND, NODE_KIND
from bench.node_cell import FLEET, ZONE_ID, NodeCell
from cluster.members import RayMembers
from cluster.policy.fleet import NodeId

_HEAD_TAGS = {
    tags.TAG_RAY_NODE_KIND: tags.NODE_KIND_HEAD,
    tags.TAG_RAY_USER_NODE_TYPE: HEAD_KIND,
    tags.TAG_RAY_NODE_NAME: HEAD,
    tags.TAG_RAY_NODE_STATUS: tags.STATUS_UP_TO_DATE,
}
_Tags = dict[str, str]
_NodeProvider: Any = node_provider.NodeProvider


class LocalNodeProvider(_NodeProvider):  # type: ignore[misc] # Ray has no types
    """Starts and ends the very nodes that our controller does.

    Args:
        provider_config: Of Ray's settings; `cell` in it is a NodeCell's fields.
        cluster_name: Of Ray's settings.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._cell = NodeCell(**provider_config["cell"])
        self._members = RayMembers(self._cell.head)
        self._tags = Path(self._cell.folder) / "tags"
        self._tags.mkdir(exist_ok=True)
        self._lock = threading.Lock()

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[NodeId]:
        """Returns the head, and the nodes that are there or are to come."""
        machines = self._nodes().list_machines()
        found = [HEAD, *(m.id for m in machines if m.state in ("starting", "up"))]
        return [node for node in found if tag_filters.items() <= self.node_tags(node).items()]

    def is_running(self, node_id: NodeId) -> bool:
        """Whether it is there, or is to come."""
        return node_id in self.non_terminated_nodes({})

    def is_terminated(self, node_id: NodeId) -> bool:
        """Whether it is gone."""
        return not self.is_running(node_id)

    def node_tags(self, node_id: NodeId) -> _Tags:
        """Returns what Ray has said of it."""
        if node_id == HEAD:
            return _HEAD_TAGS
        tagged: _Tags = json.loads((self._tags / node_id).read_text())
        return tagged

    def set_node_tags(self, node_id: NodeId, tags: _Tags) -> None:
        """Keeps what Ray says of it."""
        if node_id != HEAD:
            self._write(node_id, self.node_tags(node_id) | tags)

    def internal_ip(self, node_id: NodeId) -> str:
        """Returns Ray's id of the node, which stands for its address; its name until it joins."""
        known = {name: ray_id for ray_id, name in self._members.names().items()}
        return known.get(node_id, node_id) if node_id != HEAD else self._head_id()

    external_ip = internal_ip

    def create_node(self, node_config: dict[str, Any], tags: _Tags, count: int) -> None:
        """Asks for nodes."""
        with self._lock:
            first = sum(1 for _ in self._tags.iterdir()) + 1
            for number in range(first, first + count):
                node = NodeId(f"{FLEET}-{number}")
                self._write(node, tags)
                self._nodes(node).launch(node, ZONE_ID, "on-demand")

    def terminate_node(self, node_id: NodeId) -> None:
        """Ends a node. Its tags stay, so that no name is used twice."""
        self._nodes().end(node_id)

    def _nodes(self, node: NodeId = HEAD) -> Any:
        known_by = {"RAY_CLOUD_INSTANCE_ID": node, "RAY_NODE_TYPE_NAME": NODE_KIND}
        return self._cell.provisioner(os.environ | known_by)

    def _head_id(self) -> str:
        from ray import _raylet

        gcs: Any = _raylet
        known = gcs.GcsClient(address=self._cell.head).get_all_node_info(timeout=10.0)
        return str(next(i.hex() for i, info in known.items() if info.is_head_node))

    def _write(self, node: NodeId, tags: _Tags) -> None:
        partial = self._tags.with_name(f"{node}.partial")
        partial.write_text(json.dumps(tags))
        partial.replace(self._tags / node)
