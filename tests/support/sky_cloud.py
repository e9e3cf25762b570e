"""SkyPilot with its API server, in a HOME of its own, before an AWS that moto plays."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from cluster.local_state import MARK, new_mark, stop_processes
from cluster.machine import choose_free_port
from tests.support.moto_cloud import make_networks, make_role
from tests.support.sky_environment import ROOT, ensure_sky, make_home

_CONFIG = """\
allowed_clouds: [aws]
aws:
  vpc_name: loopvpc
  use_internal_ips: true
  use_ssm: false
  remote_identity: NO_UPLOAD
"""


@dataclass(frozen=True)
class SkyCloud:
    """What runs.

    Attributes:
        python: Of SkyPilot's environment.
        home: SkyPilot's HOME.
        environ: With which SkyPilot is to be run.
        endpoint: Of moto's AWS.
        folder: For its switches.
    """

    python: Path
    home: Path
    environ: dict[str, str]
    endpoint: str
    folder: Path

    def set_short(self, zone: str, why: str, is_short: bool) -> None:
        """Makes a zone be `out-of-stock` or `no-quota`, or not any more."""
        file = self.folder / why / zone
        file.parent.mkdir(exist_ok=True)
        file.touch() if is_short else file.unlink(missing_ok=True)


_NOWHERE = "127.77"
"""Addresses of machines behind which there are none: no VM is outside."""


@contextmanager
def run_sky_cloud(network: str = _NOWHERE) -> Iterator[SkyCloud]:
    """Starts both, and stops all that they have started.

    Args:
        network: What machines' addresses begin with.
    """
    missing = [name for name in ("rsync", "ssh") if shutil.which(name) is None]
    if missing:
        pytest.fail(f"SkyPilot needs {' and '.join(missing)}: install it (rsync, openssh-client)")
    python = ensure_sky()
    folder = Path(tempfile.mkdtemp(prefix="sky-", dir="/tmp"))
    home = folder / "home"
    home.mkdir()
    mark = new_mark()
    aws_port = choose_free_port("127.0.0.1", 47000, 47900)
    api_port = choose_free_port("127.0.0.1", 46600, 46900)
    endpoint = f"http://127.0.0.1:{aws_port}"
    environ = make_home(home) | {
        MARK: mark,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SKYPILOT_API_SERVER_LOCAL_PORT": str(api_port),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "SPT_NOENV": "1",
    }
    (home / ".sky" / "config.yaml").write_text(_CONFIG)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "testing")
            with _run_aws(environ, folder, str(aws_port), endpoint):
                make_networks(endpoint, network)
                make_role(endpoint)
                yield SkyCloud(python, home, environ, endpoint, folder)
                stop_processes(mark)
    finally:
        stop_processes(mark)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _run_aws(environ: dict[str, str], folder: Path, port: str, endpoint: str) -> Iterator[None]:
    with (folder / "moto.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.moto_cloud", port, str(folder)],
            cwd=ROOT,
            env=environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for_aws(endpoint, folder / "moto.log")
        yield
    finally:
        process.kill()
        process.wait()


def _wait_for_aws(endpoint: str, log: Path) -> None:
    give_up_s = time.monotonic() + 60.0
    while True:
        try:
            httpx.get(f"{endpoint}/moto-api/", timeout=2.0)
            return
        except httpx.HTTPError:
            assert time.monotonic() < give_up_s, log.read_text()
            time.sleep(0.3)
