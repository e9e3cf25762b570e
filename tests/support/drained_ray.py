"""A Ray cluster of two nodes on loopback, one of which gets a notice. Runs as a process of its own.

python -m tests.support.drained_ray FOLDER    prints a line of JSON: what is alive, and the log
"""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

import ray as untyped_ray
from ray.cluster_utils import Cluster

from tests.support.metadata_server import Aws, serve

ray: Any = untyped_ray
_STORE_BYTES = 80 << 20


def main(folder: str) -> None:
    """Starts it, gives notice, waits."""
    head: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
    cluster: Any = Cluster(True, head_node_args=head | {"object_store_memory": _STORE_BYTES})
    cluster.add_node(num_cpus=1, resources={"spot": 1}, object_store_memory=_STORE_BYTES)
    ray.init(address=cluster.address)
    [spot] = [node["NodeID"] for node in ray.nodes() if "spot" in node["Resources"]]
    with serve(Aws) as server:
        command = [sys.executable, "-m", "cluster.reclaim_agent", "--cloud=aws"]
        command += [f"--address={cluster.address}", f"--base-url={server.url}"]
        command += [f"--node-id={spot}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as agent:
            at = datetime.fromtimestamp(time.time() + 30, UTC)
            server.action = {"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%S}Z"}
            give_up_s = time.monotonic() + 90
            while spot in _alive() and time.monotonic() < give_up_s:
                time.sleep(0.5)
            alive = _alive()
            assert agent.stderr is not None
            said = next((line for line in agent.stderr if "the node drains" in line), "")
            agent.kill()
    print(json.dumps({"spot": spot in alive, "nodes": len(alive), "said": said}), flush=True)
    ray.shutdown()
    cluster.shutdown()


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


if __name__ == "__main__":
    main(sys.argv[1])
