"""Two cells behind one front: real HAProxy, two platforms with echo engines, one of them killed."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from cluster.cells import CellWatch, FleetOfCells
from cluster.fleet_cells import KnownCell, save_cells
from cluster.front import Front, HAProxy
from cluster.front_parts import find_haproxy
from cluster.machine import choose_free_port
from serve_app.config import Settings
from serve_app.config_front import FrontSettings
from serve_app.keys import hash_key
from tests.integration.conftest import make_settings, write_echo
from tests.support.cell_process import CellProcesses
from tests.support.platform import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

TENANTS = [f"t{i}" for i in range(12)]


def write_cell(tiny_model: Path, folder: Path) -> Settings:
    return make_settings(
        write_echo(tiny_model, tokens_per_s=40.0, max_num_seqs=32),
        auth={"kind": "keys"},
        tenants=[{"id": name, "keys": [{"hash": hash_key(name)}]} for name in TENANTS],
        store={"state_dir": str(folder)},
    )


@dataclass
class World:
    """Two cells, `east` and `west`, of which the second is a fleet's, and a front."""

    cells: CellProcesses
    front: Front
    haproxy: HAProxy
    url: str
    fleet: Path
    said: list[str] = field(default_factory=list)

    def say_of_west(self, *, leaves: bool) -> None:
        save_cells(self.fleet, [KnownCell("west", "127.0.0.1", "x/west/a", 1.0, leaves)])

    def names(self) -> list[str]:
        return sorted(self.haproxy.socket.servers())


@pytest.fixture(scope="module")
def cells(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CellProcesses]:
    folder = tmp_path_factory.mktemp("cells")
    settings = [write_cell(tiny_model, folder / name) for name in ("east", "west")]
    cells = CellProcesses(settings, folder)
    yield cells
    cells.close()


@pytest.fixture
def world(cells: CellProcesses, short_path: Path) -> Iterator[World]:
    port = choose_free_port("127.0.0.1", 25000, 25199)
    settings = FrontSettings.model_validate(
        {
            "port": port,
            "period_s": 0.2,
            "stop_s": 2.0,
            "cells": [{"name": "east", "url": cells.urls[0], "usd_per_h": 1.0}],
        }
    )
    haproxy = HAProxy(settings, short_path / "f", find_haproxy())
    fleet = FleetOfCells(short_path / "fleet", int(cells.urls[1].rpartition(":")[2]))
    said: list[str] = []
    watch = CellWatch(is_open=True)
    front = Front(settings, haproxy, watch, fleet, said.append)
    world = World(cells, front, haproxy, f"http://127.0.0.1:{port}", fleet.folder, said)
    is_over = threading.Event()
    world.say_of_west(leaves=False)
    thread = threading.Thread(target=front.run, args=(is_over.is_set,))
    thread.start()
    try:
        wait_until(lambda: _are_up(world), 30.0, "both cells are there")
        yield world
    finally:
        is_over.set()
        thread.join()
        haproxy.stop()
        haproxy.wait()
        front._haproxy.wait()
        watch.close()


def _are_up(world: World) -> bool:
    try:
        servers = world.haproxy.socket.servers()
    except OSError:
        return False
    return (
        len(world.said) >= 3
        and len(servers) == 2
        and all(server.is_up for server in servers.values())
    )


@dataclass
class Outcome:
    """What became of requests that were sent together."""

    cells: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    cut: int = 0
    """Streams that had begun when their cell died."""


async def _ask(client: httpx.AsyncClient, tenant: str, out: Outcome, *, stream: bool) -> None:
    headers = {"authorization": f"Bearer {tenant}"}
    body = {"model": "tiny", "prompt": "a b c", "max_tokens": 12, "stream": stream}
    n_bytes = 0
    try:
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
            out.cells[answer.headers.get("x-arriero-cell", "none")] += 1
            async for part in answer.aiter_bytes():
                n_bytes += len(part)
            if answer.status_code != 200:
                out.failed.append(f"{answer.status_code}")
    except httpx.HTTPError as error:
        if n_bytes:
            out.cut += 1
        else:
            out.failed.append(repr(error))


async def _load(url: str, n_each: int, *, stream: bool) -> Outcome:
    out = Outcome()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=60.0, limits=limits) as client:

        async def one_after_another(tenant: str) -> None:
            for _ in range(n_each):
                await _ask(client, tenant, out, stream=stream)

        await asyncio.gather(*(one_after_another(t) for t in TENANTS for _ in range(2)))
    return out


def test_cells_share_the_work(world: World) -> None:
    assert httpx.get(f"{world.url}/healthz").status_code == 200
    spread = asyncio.run(_load(world.url, 3, stream=True))
    assert not spread.failed
    assert set(spread.cells) == {"east", "west"}
    assert min(spread.cells.values()) >= sum(spread.cells.values()) / 4


def test_a_cell_that_leaves_gets_nothing_new_and_ends_what_it_has(world: World) -> None:
    found: list[Outcome] = []
    worker = threading.Thread(
        target=lambda: found.append(asyncio.run(_load(world.url, 6, stream=True)))
    )
    worker.start()
    time.sleep(0.5)
    world.say_of_west(leaves=True)
    wait_until(lambda: "west: leaves; gets nothing new" in world.said, 5.0, "west leaves")
    before = int(world.haproxy.socket.servers()["west"].n_total)
    worker.join()
    assert not found[0].failed
    assert found[0].cut == 0
    assert world.haproxy.socket.servers()["west"].n_total <= before + 1
    save_cells(world.fleet, [])
    wait_until(lambda: world.names() == ["east"], 10.0, "west is forgotten")


def test_another_haproxy_takes_over_without_a_failed_request(world: World) -> None:
    pid = world.haproxy.socket.pid()
    settings, folder = world.haproxy._settings, world.haproxy._folder
    assert HAProxy(settings, folder, find_haproxy()).ensure({}) == ""
    assert world.haproxy.socket.pid() == pid
    other = settings.model_copy(update={"timeout_s": 100.0})
    changed = HAProxy(other, folder, find_haproxy())
    found: list[Outcome] = []
    worker = threading.Thread(
        target=lambda: found.append(asyncio.run(_load(world.url, 3, stream=True)))
    )
    worker.start()
    world.front._haproxy = changed
    wait_until(lambda: changed.socket.pid() not in (None, pid), 10.0, "another HAProxy runs")
    worker.join()
    assert not found[0].failed
    assert found[0].cut == 0


def test_no_request_without_a_byte_is_lost_with_its_cell(world: World) -> None:
    """The last one: it kills a cell."""
    found: list[Outcome] = []
    worker = threading.Thread(
        target=lambda: found.append(asyncio.run(_load(world.url, 8, stream=False)))
    )
    worker.start()
    time.sleep(1.0)
    world.cells.kill(0)  # with requests of half of all clients, of which none has a byte yet
    worker.join()
    assert not found[0].failed
    assert found[0].cut == 0
    assert sum(found[0].cells.values()) == 8 * 2 * len(TENANTS)
    wait_until(lambda: "east: fails its checks; gets nothing" in world.said, 10.0, "east is out")
    assert httpx.get(f"{world.url}/healthz").status_code == 200
