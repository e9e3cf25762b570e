"""Requests go on in another cell: two platforms that reach each other, and their bank."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.bank_server import BankServer
from cluster.machine import choose_free_port
from serve_app.cell_messages import ROUTER_PATH, PeerCell
from serve_app.keys import hash_key
from serve_app.names import ModelName
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import read_error
from tests.support.platform import LocalPlatform, wait_until
from tests.support.streams import Stream

pytestmark = pytest.mark.slow

TINY = ModelName("tiny")
KEY = "a key that cells and their bank share"
TENANT = "key-of-team-a"
HEADERS: dict[str, Any] = {"authorization": f"Bearer {TENANT}"}
N_TOKENS = 80
COMPLETION = {
    "model": "tiny",
    "prompt": "One two",
    "max_tokens": N_TOKENS,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@dataclass
class Cells:
    """Two cells with an engine each, and their bank."""

    east: LocalPlatform
    west: LocalPlatform
    bank: BankServer

    def lose_engines(self, platform: LocalPlatform) -> None:
        for engine_id in list(platform.engine_processes):
            platform.kill_engine(engine_id)

    def restore(self, platform: LocalPlatform) -> None:
        if not platform.engine_processes:
            platform.add_engine(TINY)
        platform.wait_until_ready()


@pytest.fixture(scope="module")
def both(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    port = choose_free_port("127.0.0.1", 25600, 25649)
    assert port is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARRIERO_CELLS_KEY", KEY)
        bank = BankServer(KEY, port)
        bank.start()
        cell = {"bank": f"http://127.0.0.1:{port}", "reaches_others": True}
        platforms = []
        for name in ("east", "west"):
            folder = tmp_path_factory.mktemp(name)
            settings = make_settings(
                write_echo(tiny_model, tokens_per_s=40.0),
                auth={"kind": "keys"},
                tenants=[{"id": "team-a", "keys": [{"hash": hash_key(TENANT)}]}],
                store={"state_dir": str(folder)},
                cell=cell | {"name": name},
            )
            platforms.append(LocalPlatform(settings, folder, engines_in_processes=True))
        with platforms[0] as east, platforms[1] as west:
            # A front names them all, the one that asks among them.
            bank.show_cells([PeerCell(platform.url, 8) for platform in (east, west)])
            yield Cells(east, west, bank)
        bank.stop()


@pytest.fixture
def cells(both: Cells) -> Iterator[Cells]:
    yield both
    for platform in (both.east, both.west):
        both.restore(platform)
        wait_until(partial(_is_idle, platform), 20.0, "idle")


def _is_idle(platform: LocalPlatform) -> bool:
    return platform.count_running() == 0


def start(platform: LocalPlatform, **changes: Any) -> Stream:
    return Stream(platform.url, COMPLETION | changes, **HEADERS)


def read_usage(stream: Stream) -> Any:
    return json.loads(stream.finish()[-2])["usage"]


def count_requests(platform: LocalPlatform) -> int:
    usage = httpx.get(f"{platform.url}/v1/usage", params={"by": ""}, headers=HEADERS).json()
    return sum(row["requests"] for row in usage["data"])


def test_streams_go_on_in_the_other_cell_when_theirs_has_no_engine_left(cells: Cells) -> None:
    undisturbed = start(cells.west)
    expected = undisturbed.finish_text()
    streams = [start(cells.east) for _ in range(6)]
    chat = {"messages": [{"role": "user", "content": "One two"}], "model": "tiny", "max_tokens": 60}
    unary = Stream(cells.east.url, chat, path="/v1/chat/completions", **HEADERS)
    for stream in streams:
        stream.wait_for_lines(10)
    cells.lose_engines(cells.east)
    for stream in streams:
        assert stream.finish_text() == expected
        assert read_usage(stream) == read_usage(undisturbed)
    unary.finish()
    assert unary.status == 200
    assert json.loads("".join(unary.lines))["usage"]["completion_tokens"] == 60
    # It is the gateway's cell where they are counted, and there alone.
    wait_until(lambda: count_requests(cells.east) >= 7, 20.0, "usage stored")
    assert (count_requests(cells.east), count_requests(cells.west)) == (7, 1)


def test_a_request_comes_home_when_the_other_cell_loses_its_engines_too(cells: Cells) -> None:
    expected = start(cells.east, max_tokens=400).finish_text()
    stream = start(cells.east, max_tokens=400)
    stream.wait_for_lines(20)
    cells.lose_engines(cells.east)
    stream.wait_for_lines(100)
    cells.restore(cells.east)
    cells.lose_engines(cells.west)
    assert stream.finish_text() == expected
    assert read_usage(stream)["completion_tokens"] == 400


def test_who_had_not_begun_goes_too_and_a_client_that_leaves_is_forgotten(cells: Cells) -> None:
    stream = start(cells.east, max_tokens=400)
    stream.wait_for_lines(10)
    cells.lose_engines(cells.east)
    stream.wait_for_lines(40)
    wait_until(lambda: cells.west.count_running() == 1, 5.0, "in the other cell")
    stream.leave()
    wait_until(lambda: cells.west.count_running() == 0, 10.0, "forgotten")


def test_without_another_cell_requests_wait_for_an_engine_of_their_own(cells: Cells) -> None:
    expected = start(cells.east).finish_text()
    cells.lose_engines(cells.west)
    stream = start(cells.east)
    stream.wait_for_lines(10)
    cells.lose_engines(cells.east)
    cells.restore(cells.east)
    assert stream.finish_text() == expected


@pytest.mark.parametrize(
    ("key", "body", "status"),
    [
        ("another key", b'{"model": "tiny"}', 401),
        (KEY, b'{"model": "other"}', 404),
        (KEY, b'{"model": 1}', 400),
        (KEY, b"\xff", 400),
        (KEY, b" " * 10_000, 413),
    ],
)
def test_only_cells_are_told_where_routers_are(
    cells: Cells, key: str, body: bytes, status: int
) -> None:
    headers = {"authorization": f"Bearer {key}"}
    answer = httpx.post(cells.east.url + ROUTER_PATH, content=body, headers=headers)
    assert answer.status_code == status
    assert read_error(answer)["message"]
    assert b"key" not in answer.content or status == 401
