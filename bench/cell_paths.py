"""What it costs to come to a cell through the front, and through a cell of gateways.

    python -m bench.cell_paths            six rounds, 24 requests of 64 tokens by 8 clients each
    python -m bench.cell_paths --quick    two rounds

Three ways to the same echo engine, in turns: *cell* asks its own gateway; *front* a real HAProxy
before that; *gates* a HAProxy before a cell of gateways, whose requests go to the other cell's
router and engine. Each cell is one process without Ray. Then that cell is killed whole under
streams that came by the gates, and the longest pause of each is told; another cell takes them.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import LoadResult, completion_asks, run_load
from bench.report import Figure, Spread, describe_run, print_figures, print_table, say
from cluster.bank_server import BankServer
from cluster.front import HAProxy
from cluster.machine import choose_free_port
from serve_app.cell_messages import PeerCell
from serve_app.config import Settings, parse_settings
from tests.support.cell_process import CellProcesses
from tests.support.front_thread import fronting
from tests.support.platform import wait_until
from tests.support.settings import write_args, write_model
from tests.support.streams import Stream
from tests.support.tiny_model import make_tiny_model

_KEY = "of a benchmark, on one machine"
_CLIENTS, _N_REQUESTS, _N_TOKENS = 8, 24, 64
_N_STREAMS = 16


@dataclass
class World:
    """Addresses by way, and the cells with engines."""

    urls: dict[str, str]
    cells: list[CellProcesses]
    bank: BankServer


def _settings(model: Path, name: str, bank: str, **cell: Any) -> Settings:
    engine = {"kind": "echo", "max_model_len": 2048, "tokens_per_s": 100.0, "max_num_seqs": 64}
    entry = write_model("tiny", source={"kind": "local", "path": str(model)}, engine=engine)
    cell |= {"name": name, "bank": bank, "reaches_others": True}
    store = {"state_dir": str(model.parent / f"state-{name}")}
    return parse_settings(write_args(entry, cell=cell, store=store))


@contextmanager
def _running(folder: Path) -> Iterator[World]:
    os.environ["ARRIERO_CELLS_KEY"] = _KEY
    model = make_tiny_model(folder / "tiny", seed=1)
    port = _free_port(25_200)
    address = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        bank = BankServer(_KEY, port)
        bank.start()
        stack.callback(bank.stop)
        cells: list[CellProcesses] = []
        for name, extra in (("east", {}), ("west", {}), ("gate", {"only_gateways": True})):
            say(f"starting {name}")
            if name == "gate":
                bank.show_cells([PeerCell(cells[0].urls[0], 64)])
            own = folder / name
            own.mkdir()
            cells.append(CellProcesses([_settings(model, name, address, **extra)], own))
            stack.callback(cells[-1].close)
        east, _, gate = (cell.urls[0] for cell in cells)
        urls = {"cell": east}
        for way, url in (("front", east), ("gates", gate)):
            urls[way] = stack.enter_context(_front_of(url, folder / f"front-{way}"))
        yield World(urls, cells[:2], bank)


@contextmanager
def _front_of(url: str, folder: Path) -> Iterator[str]:
    port = _free_port(25_000)
    with fronting({"only": url}, port, folder) as haproxy:
        wait_until(lambda: any(_is_up(haproxy)), 30.0, "front")
        yield f"http://127.0.0.1:{port}"


def _is_up(haproxy: HAProxy) -> list[bool]:
    try:
        return [server.is_up for server in haproxy.socket.servers().values()]
    except OSError:
        return []


def _free_port(first: int) -> int:
    port = choose_free_port("127.0.0.1", first, first + 99)
    assert port is not None, "no port is free"
    return port


def _measure(urls: dict[str, str], rounds: int) -> dict[str, list[LoadResult]]:
    """Take turns, in another order each round."""
    results: dict[str, list[LoadResult]] = defaultdict(list)
    for i in range(rounds + 1):
        ways = list(urls)
        random.Random(i).shuffle(ways)
        for way in ways:
            asks = completion_asks("tiny", 200, _N_TOKENS, random.Random(f"{i}"))
            result = asyncio.run(run_load(urls[way], asks, _CLIENTS, _N_REQUESTS))
            assert not result.errors, result.errors
            if i:  # The first round is to warm up.
                results[way].append(result)
        say(f"round {i} of {rounds}")
    return results


def _table(results: dict[str, list[LoadResult]]) -> dict[str, Figure]:
    rows, figures = [], {}
    for way, runs in results.items():
        firsts = [1000 * run.ttft_s["p50"] for run in runs]
        lasts = [1000 * run.ttft_s["p99"] for run in runs]
        gaps = [1000 * run.itl_s["p99"] for run in runs]
        whole = [1000 * run.e2e_s["p50"] for run in runs]
        texts = (Spread.of(values).text(1) for values in (firsts, lasts, gaps, whole))
        rows.append([way, *texts])
        beside = zip(firsts, (1000 * r.ttft_s["p50"] for r in results["cell"]), strict=True)
        figures[f"{way}_ttft_ms_beyond_cell"] = Figure(
            Spread.of(mine - theirs for mine, theirs in beside).mid
        )
    head = ["way", "TTFT p50, ms", "TTFT p99, ms", "gap p99, ms", "answer p50, ms"]
    print_table("To a cell: middle (lowest-highest) of the rounds", head, rows)
    return figures


def _measure_pauses(world: World) -> list[float]:
    """Kill the cell that serves; return the longest pause of each stream that came by the gates."""
    body = {"model": "tiny", "prompt": "One two", "max_tokens": 900, "stream": True}
    body |= {"ignore_eos": True}
    streams = [Stream(world.urls["gates"], body) for _ in range(_N_STREAMS)]
    for stream in streams:
        stream.wait_for_lines(100)
    world.bank.show_cells([PeerCell(cell.urls[0], 64) for cell in world.cells])
    time.sleep(3.0)  # until the gates know the other one
    world.cells[0].kill(0)
    for stream in streams:
        stream.finish_text(60.0)
    return sorted(stream.longest_gap_s() for stream in streams)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    print(describe_run("python -m bench.cell_paths" + " --quick" * options.quick))
    with tempfile.TemporaryDirectory(prefix="cp-", dir="/tmp") as folder, ExitStack() as stack:
        world = stack.enter_context(_running(Path(folder)))
        figures = _table(_measure(world.urls, rounds))
        pauses = _measure_pauses(world)
        print(
            f"\nLongest pause of each of {len(pauses)} streams whose cell was killed, s: ", end=""
        )
        print(f"{Spread.of(pauses).text(2)}")
        figures["pause_s"] = Figure(pauses[-1])
    print_figures("cell_paths", figures, is_quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
