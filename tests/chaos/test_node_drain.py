"""One of several Ray nodes drains under load: streams move, and its engine comes back elsewhere.

A minute on a quiet machine; with `make chaos-deaths`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.bootstrap import ROOT
from cluster.local_nodes import LocalNodeShape, LocalProvisioner, LocalZone
from cluster.local_ray import node_environment
from cluster.members import RayMembers
from cluster.policy.fleet import NodeId, ZoneId
from serve_app.deployment_names import engine_of
from tests.chaos.deaths import MODEL, N_ENGINES, write_settings
from tests.chaos.test_deaths import check_whole, count_ready, start_long_streams
from tests.support.ray_platform import RayPlatform
from tests.support.tiny_model import make_tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not os.environ.get("ARRIERO_DEATHS"), reason="make chaos-deaths"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

_CPUS = 4.0
_EAST = ZoneId("local/east")
_NOTICE_S = 20
_ENGINE = engine_of(MODEL)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[RayPlatform, LocalProvisioner]]:
    """A head that has no room for engines, and two nodes with room for one each."""
    with RayPlatform(cpus=1) as platform:
        environ = node_environment(os.environ, platform.mark) | {"PYTHONPATH": str(ROOT)}
        provisioner = LocalProvisioner(
            "f",
            [LocalZone("east", 1.0, 3.0, 8)],
            LocalNodeShape(_CPUS),
            platform.ray_address,
            tmp_path / "nodes",
            platform.folder / "n",
            environ,
        )
        for name in ("f-1", "f-2"):
            provisioner.launch(NodeId(name), _EAST, "spot")
        model = make_tiny_model(tmp_path / "model")
        accelerator = {"kind": "cpu", "cpus": _CPUS - 1}
        platform.deploy_and_wait(write_settings(model, accelerator=accelerator))
        platform.wait_until(lambda: count_ready(platform) == N_ENGINES, 120.0, "whole")
        yield platform, provisioner


def drain(address: str, ray_id: str) -> None:
    """As an operator does it, or an agent that has heard a cloud's notice."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", f"--address={address}"]
    command += ["--node-id", ray_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "notice", "--deadline-remaining-seconds", str(_NOTICE_S)]
    # Ray would look for the head at the machine's outer address otherwise.
    environ = os.environ | {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    subprocess.run(command, env=environ, capture_output=True, check=True, timeout=60)


def test_streams_of_a_node_that_drains_are_whole_and_its_engine_comes_back(
    nodes: tuple[RayPlatform, LocalProvisioner],
) -> None:
    platform, provisioner = nodes
    names = RayMembers(platform.ray_address).names()
    drained = next(ray_id for ray_id, name in names.items() if name == "f-1")
    assert {names[ray_id] for ray_id in platform.nodes_of(_ENGINE)} == {"f-1", "f-2"}
    streams = start_long_streams(platform, 4)
    drain(platform.ray_address, drained)
    check_whole(streams, longest_gap_s=5.0)

    def is_gone() -> bool:
        return drained not in platform.nodes_of(_ENGINE)

    platform.wait_until(is_gone, 2.0 * _NOTICE_S, "rid of the engine on it")
    provisioner.end(NodeId("f-1"))
    provisioner.launch(NodeId("f-3"), _EAST, "spot")
    platform.wait_until(lambda: len(platform.nodes_of(_ENGINE)) == N_ENGINES, 120.0, "whole again")
    platform.wait_until(lambda: count_ready(platform) == N_ENGINES, 60.0, "known to the router")
