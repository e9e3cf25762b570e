"""Ray's settings of its own autoscaler over the nodes of `bench.node_loop`.

Without Ray itself: who imports it before a token is set has none.
"""

from dataclasses import asdict
from typing import Any

from bench.node_cell import FLEET, MOST, NodeCell
from cluster.policy.fleet import NodeId

HEAD = NodeId("head")
HEAD_KIND, NODE_KIND = "head", "node"
"""Of nodes, as Ray's settings name them."""


def autoscaling_config(cell: NodeCell) -> dict[str, Any]:
    """Returns Ray's settings: no node without demand, all else as by default.

    The provider's switches are those of Ray's own several nodes on one machine
    (`fake_multi_node/example.yaml` in its repository): nothing is installed on a node.
    """
    commands = ("initialization", "setup", "head_setup", "worker_setup")
    starts = ("head_start_ray", "worker_start_ray")
    return {
        "cluster_name": FLEET,
        "max_workers": MOST,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": cell.idle_s / 60,
        "provider": {
            "type": "external",
            "module": "bench.ray_node_provider.LocalNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "cell": asdict(cell),
        },
        "available_node_types": {
            HEAD_KIND: _kind(cpus=0, most=0),
            NODE_KIND: _kind(cpus=1, most=MOST),
        },
        "head_node_type": HEAD_KIND,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in (*commands, *starts)},
    }


def _kind(cpus: int, most: int) -> dict[str, Any]:
    return {
        "resources": {"CPU": cpus},
        "node_config": {},
        "min_workers": 0,
        "max_workers": most,
    }
