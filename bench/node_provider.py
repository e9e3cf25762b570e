"""Nodes of this machine for Ray's own autoscaler, by the interface of its external providers.

Ray's monitor imports this by name. Of the fleet it knows the folder that its configuration names.
"""

import os
from pathlib import Path
from typing import Any

from ray.autoscaler import node_provider, tags

from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.policy.fleet import NodeId, ZoneId

_HEAD = "head"
_HEAD_TYPE = "ray.head.default"
_Provider: Any = node_provider.NodeProvider


class FleetNodeProvider(_Provider):  # type: ignore[misc]  # Ray's has no types
    """One zone, one kind of node.

    Args:
        provider_config: Of Ray's configuration: address of the head, folder.
        cluster_name: Of Ray's configuration.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._head = provider_config["head"]
        self._folder = Path(provider_config["folder"])
        self._tags: dict[str, dict[str, str]] = {_HEAD: _make_tags(_HEAD, _HEAD_TYPE)}
        self._number = 0

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Return the nodes that are there, the head too."""
        there = {m.id for m in self._nodes({}).list_machines() if m.state in ("starting", "up")}
        return [
            node
            for node, known in self._tags.items()
            if (node == _HEAD or node in there)
            and all(known.get(name) == value for name, value in tag_filters.items())
        ]

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        """Start nodes."""
        kind = tags["ray-user-node-type"]
        for _ in range(count):
            self._number += 1
            node = f"f-{self._number}"
            self._tags[node] = {**tags, **_make_tags("worker", kind)}
            marks = {"RAY_CLOUD_INSTANCE_ID": node, "RAY_NODE_TYPE_NAME": kind}
            self._nodes(marks).launch(NodeId(node), ZoneId("local/east"), "spot")

    def terminate_node(self, node_id: str) -> None:
        """End one."""
        self._tags.pop(node_id, None)
        self._nodes({}).end(NodeId(node_id))

    def is_running(self, node_id: str) -> bool:
        """Say whether it is there."""
        return node_id in self.non_terminated_nodes({})

    def is_terminated(self, node_id: str) -> bool:
        """Say whether it is not."""
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Return what Ray has written on a node."""
        return self._tags.get(node_id, {})

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Write on a node."""
        self._tags[node_id].update(tags)

    def internal_ip(self, node_id: str) -> str:
        """Return an address; its name, as all have one address."""
        return node_id

    external_ip = internal_ip

    def _nodes(self, marks: dict[str, str]) -> LocalProvisioner:
        zone = LocalZone("east", 1.0, 3.0, 8)
        environ = {**os.environ, **marks}
        return LocalProvisioner(
            "f", [zone], LocalNodeShape(), self._head, self._folder, self._folder / "n", environ
        )


def _make_tags(role: str, kind: str) -> dict[str, str]:
    return {
        tags.TAG_RAY_NODE_KIND: role,
        tags.TAG_RAY_USER_NODE_TYPE: kind,
        tags.TAG_RAY_NODE_NAME: role,
        tags.TAG_RAY_NODE_STATUS: tags.STATUS_UP_TO_DATE,
    }
