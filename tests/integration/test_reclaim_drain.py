"""A notice ends in a drained Ray node: real Ray, real agent, a metadata service on loopback."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_node_with_a_notice_is_drained_and_the_head_stays() -> None:
    folder = tempfile.mkdtemp(prefix="rd-", dir="/tmp")  # a socket's path must be short
    environ = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    # Ray's node address is then the loopback address.
    environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    command = [sys.executable, "-m", "tests.support.drained_ray", folder]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["spot"], seen["nodes"]) == (False, 1)
    assert "the node drains" in seen["said"]
