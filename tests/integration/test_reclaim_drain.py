"""A notice ends in a drained Ray node: real Ray, real agent, a metadata service on loopback."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.local_ray import HOST, Ports, choose_ports, ensure_token, ray_environment, start_ray
from cluster.local_state import new_mark, stop_processes
from tests.support.metadata_server import Aws, serve
from tests.support.platform import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_LIST_NODES = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps([[n["NodeID"], n["Alive"], n["Resources"]] for n in ray.nodes()]))
"""


@pytest.fixture
def head() -> Iterator[tuple[Ports, dict[str, str]]]:
    folder, mark, ports = (
        Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp")),
        new_mark(),
        choose_ports(),
    )
    token = ensure_token(os.environ)
    environ = ray_environment(os.environ, ports, folder, mark, "none") | {"RAY_AUTH_TOKEN": token}
    try:
        start_ray(ports, folder, environ)
        yield ports, environ
    finally:
        stop_processes(mark)
        shutil.rmtree(folder, ignore_errors=True)


def list_nodes(address: str, environ: dict[str, str]) -> list[tuple[str, bool, dict[str, float]]]:
    command = [sys.executable, "-c", _LIST_NODES, address]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [tuple(node) for node in json.loads(done.stdout.splitlines()[-1])]


def test_node_with_a_notice_is_drained_by_its_deadline_and_the_head_stays(
    head: tuple[Ports, dict[str, str]],
) -> None:
    ports, environ = head
    address = f"{HOST}:{ports.gcs}"
    ray = str(Path(sys.executable).with_name("ray"))
    join = [ray, "start", f"--address={address}", f"--node-ip-address={HOST}", "--num-cpus=1"]
    join += ["--resources", '{"spot": 1}', "--object-store-memory=80000000"]
    # Ray refuses a second node under the switch that keeps it on the loopback address.
    joining = environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    done = subprocess.run(join, env=joining, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    [spot] = [name for name, _, held in list_nodes(address, environ) if "spot" in held]

    with serve(Aws) as server:
        command = [sys.executable, "-m", "cluster.reclaim_agent", f"--address={address}"]
        command += ["--cloud=aws", f"--base-url={server.url}", f"--node-id={spot}"]
        with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as agent:
            try:
                at = datetime.fromtimestamp(time.time() + 10, UTC)
                server.action = {"action": "terminate", "time": f"{at:%Y-%m-%dT%H:%M:%S}Z"}
                wait_until(lambda: _alive(address, environ) == (1, False), 90, "drained")
            finally:
                agent.kill()
                _, said = agent.communicate()
    assert "the node drains" in said


def _alive(address: str, environ: dict[str, str]) -> tuple[int, bool]:
    """Number of nodes alive, and whether the spot node is among them."""
    alive = [held for _, is_alive, held in list_nodes(address, environ) if is_alive]
    return len(alive), any("spot" in held for held in alive)
