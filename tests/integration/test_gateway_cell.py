"""A cell of gateways before two cells with engines: what it answers outlives either of them."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.bank_server import BankServer
from cluster.front import HAProxy
from cluster.machine import choose_free_port
from serve_app.config import Settings
from serve_app.keys import hash_key
from tests.integration.conftest import make_settings, write_echo
from tests.support.cell_process import CellProcesses
from tests.support.front_thread import fronting
from tests.support.platform import LocalPlatform, wait_until
from tests.support.streams import Stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

KEY = "a key that cells and their bank share"
TENANTS = [f"t{i}" for i in range(24)]
COMPLETION = {
    "model": "tiny",
    "prompt": "One two",
    "max_tokens": 240,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@dataclass
class World:
    """The front's address, the cell of gateways behind it, and cells with engines."""

    url: str
    gate: LocalPlatform
    cells: CellProcesses
    haproxy: HAProxy


def _write(tiny_model: Path, folder: Path, name: str, bank: str, **cell: Any) -> Settings:
    return make_settings(
        write_echo(tiny_model, tokens_per_s=40.0, max_num_seqs=32),
        auth={"kind": "keys"},
        tenants=[{"id": name, "keys": [{"hash": hash_key(name)}]} for name in TENANTS],
        store={"state_dir": str(folder / name)},
        cell={"name": name, "bank": bank, "period_s": 0.2, "reaches_others": True, **cell},
    )


@pytest.fixture
def world(tiny_model: Path, tmp_path: Path, short_path: Path) -> Iterator[World]:
    port, bank_port = (choose_free_port("127.0.0.1", n, n + 49) for n in (25650, 25700))
    assert port is not None
    assert bank_port is not None
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("ARRIERO_CELLS_KEY", KEY)
        bank = BankServer(KEY, bank_port)
        bank.start()
        stack.callback(bank.stop)
        address = f"http://127.0.0.1:{bank_port}"
        cells = CellProcesses(
            [_write(tiny_model, tmp_path, name, address) for name in ("east", "west")], tmp_path
        )
        stack.callback(cells.close)
        own = _write(tiny_model, tmp_path, "gate", address, only_gateways=True)
        (tmp_path / "gate").mkdir()
        gate = stack.enter_context(LocalPlatform(own, tmp_path / "gate", is_waiting=False))
        urls = {"gate": gate.url, "east": cells.urls[0], "west": cells.urls[1]}
        haproxy = stack.enter_context(fronting(urls, port, short_path / "f", bank.show_cells))
        gate.wait_until_ready(60.0)
        yield World(f"http://127.0.0.1:{port}", gate, cells, haproxy)


def _start(url: str, tenant: str) -> Stream:
    return Stream(url, COMPLETION, authorization=f"Bearer {tenant}")


def _weights(world: World) -> dict[str, int]:
    return {name: server.weight for name, server in world.haproxy.socket.servers().items()}


def test_without_a_cell_of_gateways_the_others_serve_clients_themselves(world: World) -> None:
    wait_until(lambda: _weights(world).get("east") == 0, 20.0, "the gate comes first")
    for server in world.gate._gateways:
        server.server.should_exit = True

    def is_served() -> bool:
        headers = {"authorization": "Bearer t0"}
        body = COMPLETION | {"max_tokens": 4, "stream": False}
        del body["stream_options"]
        answer = httpx.post(f"{world.url}/v1/completions", json=body, headers=headers)
        return answer.status_code == 200 and answer.headers["x-arriero-cell"] != "gate"

    wait_until(is_served, 20.0, "served without the gate")


def _count_busy(world: World) -> int:
    return sum(engine["running"] > 0 for engine in world.gate.list_engines())


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_no_stream_ends_with_the_cell_that_computes_it(world: World, end: signal.Signals) -> None:
    weights = wait_until(lambda: _weights(world).get("east") == 0, 20.0, "the gate comes first")
    assert weights < 20.0
    expected = _start(world.url, "t0").finish_text()
    streams = [_start(world.url, tenant) for tenant in TENANTS]
    for stream in streams:
        stream.wait_for_lines(15)
    wait_until(lambda: _count_busy(world) == 2, 6.0, "tenants are spread over both cells")
    world.cells.kill(0, end)
    for stream in streams:
        assert stream.finish_text() == expected
        assert json.loads(stream.finish()[-2])["usage"]["completion_tokens"] == 240
    # What comes while its cell is being missed, and after that, is answered, too.
    again = [_start(world.url, tenant) for tenant in TENANTS]
    assert {stream.finish_text() for stream in again} == {expected}
    assert httpx.get(f"{world.url}/ready").headers["x-arriero-cell"] == "gate"
    wait_until(lambda: len(world.gate.list_engines()) == 1, 20.0, "the dead cell is not shown")
