"""A cell of gateways before two cells with a real engine each; one of those loses its engine."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.bank_server import BankServer
from cluster.machine import choose_free_port
from serve_app.cell_messages import PeerCell
from serve_app.config import parse_settings
from tests.support.platform import LocalPlatform, wait_until
from tests.support.seams import REAL, compare_all, start_all, write_entry
from tests.support.settings import write_args

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(900)]

KEY = "a key that cells and their bank share"


@dataclass
class World:
    """The cell of gateways, and those with engines."""

    gate: LocalPlatform
    cells: list[LocalPlatform]

    def count_ready(self) -> int:
        return [e["state"] for e in self.gate.list_engines()].count("ready")

    def kill_the_busy(self) -> None:
        wait_until(lambda: any(cell.count_running() for cell in self.cells), 10.0, "running")
        (busy,) = (cell for cell in self.cells if cell.count_running())  # One tenant, one cell.
        (engine_id,) = busy.engine_processes
        busy.kill_engine(engine_id)
        busy.add_engine(REAL)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    port = choose_free_port("127.0.0.1", 25800, 25849)
    assert port is not None
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("ARRIERO_CELLS_KEY", KEY)
        bank = BankServer(KEY, port)
        bank.start()
        stack.callback(bank.stop)

        def start(name: str, **cell: Any) -> LocalPlatform:
            cell |= {"name": name, "bank": f"http://127.0.0.1:{port}", "reaches_others": True}
            settings = parse_settings(write_args(write_entry(), cell=cell))
            folder = tmp_path_factory.mktemp(name)
            platform = LocalPlatform(settings, folder, engines_in_processes=True, is_waiting=False)
            return stack.enter_context(platform)

        cells = [start("east"), start("west")]
        bank.show_cells([PeerCell(cell.url, 16) for cell in cells])
        found = World(start("gate", only_gateways=True), cells)
        wait_until(lambda: found.count_ready() == 2, 300.0, "two cells")
        found.gate.wait_until_ready()
        yield found


@pytest.mark.parametrize("n_lines", [3, 40])
def test_answers_that_change_cells_equal_undisturbed_ones(world: World, n_lines: int) -> None:
    whole = start_all(world.gate)
    for stream in whole:
        stream.finish(300.0)
    moved = start_all(world.gate)
    for stream in moved:
        stream.wait_for_lines(n_lines)
    world.kill_the_busy()
    for stream in moved:
        stream.finish(300.0)
    compare_all(moved, whole)
    wait_until(lambda: world.count_ready() == 2, 300.0, "both cells again")
