"""Requests with adapters change cells where an adapter's number means the same there."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.bank_server import BankServer
from cluster.machine import choose_free_port
from serve_app.cell_messages import PeerCell
from serve_app.names import ModelName
from tests.integration.conftest import make_settings, write_vllm
from tests.support.adapters import ALL_LINEAR, make_family
from tests.support.platform import LocalPlatform
from tests.support.postgres import PostgresServer
from tests.support.streams import Stream

pytestmark = pytest.mark.slow

TINY = ModelName("tiny")
KEY = "a key that cells and their bank share"
REQUEST = {
    "prompt": "The quick brown fox jumps over the lazy dog",
    "max_tokens": 400,
    "temperature": 0,
    "ignore_eos": True,
}


class Cells:
    """Two cells with a real engine each, which have used adapters in another order."""

    def __init__(self, folder: Path, tiny_model: Path, bank: str, store: dict[str, Any]) -> None:
        family = folder / "family"
        make_family(family, tiny_model, 3, modules=ALL_LINEAR, strength=2.0)
        self.platforms = []
        for name in ("east", "west"):
            (folder / name).mkdir()
            settings = make_settings(
                write_vllm(tiny_model, adapters={"slots": 4, "in_memory": 8}),
                adapters={
                    "families": [{"base": "tiny", "source": str(family)}],
                    "cache": {"path": str(folder / name / "cache")},
                },
                store=store | {"state_dir": str(folder / name / "state")},
                cell={"name": name, "bank": bank, "reaches_others": True},
            )
            platform = LocalPlatform(settings, folder / name, engines_in_processes=True)
            self.platforms.append(platform)

    def say(self, i: int, model: str) -> str:
        body = REQUEST | {"model": model}
        answer = httpx.post(self.platforms[i].url + "/v1/completions", json=body, timeout=60.0)
        text: str = answer.json()["choices"][0]["text"]
        return text

    def begin_and_lose_engine(self, model: str) -> Stream:
        """A stream of the first cell, which loses its engine then."""
        east = self.platforms[0]
        for _ in range(3):
            stream = Stream(east.url, REQUEST | {"model": model, "stream": True})
            stream.wait_for_lines(5)
            for engine_id in list(east.engine_processes):
                east.kill_engine(engine_id)
            if stream.is_running:
                return stream
            east.add_engine(TINY)  # It was done already: it takes a second where nothing is busy.
            east.wait_until_ready()
        raise AssertionError("streams end too soon")


@pytest.fixture(params=["postgresql", "sqlite"])
def cells(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Cells]:
    store = {}
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        monkeypatch.setenv("ARRIERO_TEST_STORE_URL", server.make_database())
        store = {"database": {"kind": "postgresql", "url": "env:ARRIERO_TEST_STORE_URL"}}
    port = choose_free_port("127.0.0.1", 25750, 25799)
    assert port is not None
    monkeypatch.setenv("ARRIERO_CELLS_KEY", KEY)
    bank = BankServer(KEY, port)
    bank.start()
    with ExitStack() as stack:
        stack.callback(bank.stop)
        found = Cells(tmp_path, tiny_model, f"http://127.0.0.1:{port}", store)
        for platform in found.platforms:
            stack.enter_context(platform)
        bank.show_cells([PeerCell(platform.url, 8) for platform in found.platforms])
        # They number adapters as they meet them.
        assert len({found.say(0, f"tiny:a{i:05}") for i in (0, 1, 2)}) == 3
        assert len({found.say(1, f"tiny:a{i:05}") for i in (2, 1, 0)}) == 3
        yield found


def test_adapter_is_the_same_in_the_cell_that_goes_on(
    cells: Cells, request: pytest.FixtureRequest
) -> None:
    expected = cells.say(0, "tiny:a00000")
    stream = cells.begin_and_lose_engine("tiny:a00000")
    if "sqlite" in request.node.name:
        # Another cell's number may be another adapter's: it waits for an engine of its own.
        time.sleep(3.0)
        assert stream.is_running
        assert cells.platforms[1].count_running() == 0
        cells.platforms[0].add_engine(TINY)
    assert stream.finish_text(90.0) == expected
