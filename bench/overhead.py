"""What the platform costs beside bare vLLM on the same engine arguments, and beside Ray Serve LLM.

    python -m bench.overhead [--quick]

All systems are loaded at once and measured in turn, cell by cell and round by round (A B C, B C A,
C A B), so that drift of the machine hits all alike; ratios are taken within a round. A cell is a
number of clients and a length of prompts and answers. Prompts are random tokens, the same for
every system and different in every round.
"""

import argparse
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.arriero_system import arriero_vllm
from bench.bare_vllm import BareVllm
from bench.load import completion_asks
from bench.measure import Asks, Measured, measure, running
from bench.peer_systems import ray_serve_llm
from bench.peers import PeerMissingError, ray_llm_folder
from bench.report import (
    Figure,
    Spread,
    describe_run,
    geometric_mean,
    print_figures,
    print_table,
    say,
)
from bench.systems import ENGINE_ARGS, MODEL_NAME, NotRunningError, System
from serve_app.embedded_model import prepare_embedded_model

BARE, OURS, PEER, PEER_DIRECT = "bare", "arriero", "ray-llm", "ray-llm-direct"
_WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Cell:
    """One load.

    Args:
        clients: Requests at a time.
        prompt_tokens: Length of each prompt.
        output_tokens: Length of each answer.
        n_requests: In all.
    """

    clients: int
    prompt_tokens: int
    output_tokens: int
    n_requests: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.prompt_tokens}/{self.output_tokens}, {self.clients} clients"

    def asks(self, seed: str, output_tokens: int | None = None) -> Asks:
        """Makes this cell's requests; answers may be shorter, to warm up."""
        length = output_tokens or self.output_tokens
        return lambda n: completion_asks(
            MODEL_NAME, self.prompt_tokens, length, random.Random(f"{seed}-{n}")
        )


QUICK_CELLS = (Cell(1, 64, 64, 2), Cell(16, 64, 64, 16))
CELLS = (
    Cell(1, 64, 64, 8),
    Cell(4, 64, 64, 20),
    Cell(16, 64, 64, 48),
    Cell(32, 64, 64, 96),
    Cell(1, 512, 128, 4),
    Cell(4, 512, 128, 12),
    Cell(16, 512, 128, 32),
    Cell(32, 512, 128, 64),
)

Results = dict[tuple[Cell, str], list[Measured]]
"""(cell, system) -> one measurement a round."""


@dataclass(frozen=True)
class Metric:
    """A number of a measurement that is compared with bare vLLM's.

    Args:
        key: In the last line.
        title: For people.
        read: Takes it out of a measurement.
        target: For the ratio to bare vLLM.
        is_more_better: Which way is ahead.
    """

    key: str
    title: str
    read: Callable[[Measured], float]
    target: str
    is_more_better: bool


METRICS = (
    Metric("throughput", "output tokens/s", lambda m: m.load.tokens_per_s, ">= 0.95", True),
    Metric("ttft_p50", "TTFT p50", lambda m: m.load.ttft_s["p50"], "<= 1.10", False),
    Metric("itl_p50", "ITL p50", lambda m: m.load.itl_s["p50"], "<= 1.05", False),
)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cells = QUICK_CELLS if options.quick else CELLS
    rounds = options.rounds or (1 if options.quick else 3)
    model_path = prepare_embedded_model(progress=say)
    try:
        with running(_make_systems(options, model_path)) as systems:
            results = _run(systems, cells, rounds, options)
    except (NotRunningError, PeerMissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _report(results, systems, options)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two cells, one round")
    parser.add_argument("--rounds", type=int, help="how often each cell is measured")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--threads", type=int, help="compute threads; without it, all defaults")
    parser.add_argument(
        "--systems",
        default=f"{BARE},{OURS},{PEER}",
        help=f"comma-separated: {BARE}, {OURS}, {PEER}, {PEER_DIRECT}",
    )
    return parser.parse_args()


def _make_systems(options: argparse.Namespace, model_path: Path) -> dict[str, System]:
    threads: int | None = options.threads
    env = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    env = env if threads is not None else {}
    keys: list[str] = options.systems.split(",")
    needs_packages = {PEER, PEER_DIRECT} & set(keys)
    packages = ray_llm_folder() if needs_packages else model_path
    make: dict[str, Callable[[], System]] = {
        BARE: lambda: BareVllm(model_path, env),
        OURS: lambda: arriero_vllm(threads),
        PEER: partial(ray_serve_llm, model_path, env, packages),
        PEER_DIRECT: partial(ray_serve_llm, model_path, env, packages, is_direct=True),
    }
    return {key: make[key]() for key in keys}


def _run(
    systems: dict[str, System], cells: tuple[Cell, ...], rounds: int, options: argparse.Namespace
) -> Results:
    results: Results = defaultdict(list)
    order = list(systems)
    for n in range(rounds):
        for i, cell in enumerate(cells):
            turn = (n + i) % len(order)
            for key in order[turn:] + order[:turn]:
                seed = f"{options.seed}-{n}-{i}"
                found = _run_cell(systems[key], cell, seed, tries=1 if options.quick else 2)
                results[cell, key].append(found)
                say(
                    f"round {n + 1}/{rounds}  {cell.title:>18}  {systems[key].name:<22}"
                    f"{found.load.tokens_per_s:7.1f} tok/s  "
                    f"TTFT {found.load.ttft_s['p50'] * 1000:6.0f} ms  "
                    f"ITL {found.load.itl_s['p50'] * 1000:5.1f} ms  "
                    f"CPU {sum(found.cpu_s_per_1k_tokens.values()):5.1f} s/1k"
                )
    return results


def _run_cell(system: System, cell: Cell, seed: str, tries: int) -> Measured:
    warm_up = cell.asks(f"warm-up-{time.monotonic_ns()}", _WARM_UP_TOKENS)
    return measure(system, cell.asks(seed), warm_up, cell.clients, cell.n_requests, tries=tries)


# --- report ---------------------------------------------------------------------------------


def _report(results: Results, systems: dict[str, System], options: argparse.Namespace) -> None:
    print(describe_run("make bench-overhead" + (" ARGS=--quick" if options.quick else "")))
    args = ", ".join(f"{name} {value}" for name, value in ENGINE_ARGS.items())
    threads = options.threads or "each system's default number of"
    print(f"- SmolLM2-135M-Instruct, {args}, {threads} compute threads, streaming, greedy")
    _print_latencies(results, systems)
    for key, system in systems.items():
        if key != BARE and BARE in systems:
            _print_ratios(results, key, system.name)
    _print_cpu(results, systems)
    _print_memory(results, systems)
    print()
    print_figures("overhead", _figures(results, systems), is_quick=options.quick)


def _print_latencies(results: Results, systems: dict[str, System]) -> None:
    rows = []
    for (cell, key), found in results.items():
        cells = [cell.title, systems[key].name, _of(found, lambda m: m.load.tokens_per_s, 1)]
        for p in ("p50", "p95", "p99"):
            cells.append(Spread.of(m.load.ttft_s[p] * 1000 for m in found).text(0))
        for p in ("p50", "p95", "p99"):
            cells.append(Spread.of(m.load.itl_s[p] * 1000 for m in found).text(1))
        rows.append([*cells, f"{max(m.others_cores for m in found):.2f}"])
    head = ["prompt/answer", "system", "tokens/s", "TTFT p50 ms", "p95", "p99", "ITL p50 ms"]
    head += ["p95", "p99", "others' cores"]
    print_table("Throughput and latency: median (lowest-highest) of the rounds", head, rows)


def _of(found: list[Measured], read: Callable[[Measured], float], digits: int) -> str:
    return Spread.of(read(measured) for measured in found).text(digits)


def _print_ratios(results: Results, key: str, name: str) -> None:
    rows = [
        [cell.title, *(_ratio(results, cell, metric, key, BARE).text(3) for metric in METRICS)]
        for cell in _cells(results)
    ]
    head = ["prompt/answer", *(f"{metric.title} ({metric.target})" for metric in METRICS)]
    print_table(f"{name} as a ratio to bare vLLM", head, rows)


def _cells(results: Results) -> list[Cell]:
    return list(dict.fromkeys(cell for cell, _ in results))


def _ratio(results: Results, cell: Cell, metric: Metric, key: str, to: str) -> Spread:
    pairs = zip(results[cell, key], results[cell, to], strict=True)
    return Spread.of(metric.read(ours) / metric.read(theirs) for ours, theirs in pairs)


def _print_cpu(results: Results, systems: dict[str, System]) -> None:
    rows = []
    for (cell, key), found in results.items():
        roles: dict[str, list[float]] = defaultdict(list)
        for measured in found:
            for role, cpu_s in measured.cpu_s_per_1k_tokens.items():
                roles[role].append(cpu_s)
        parts = {role: Spread.of(values).mid for role, values in roles.items()}
        listed = sorted(parts.items(), key=lambda item: -item[1])
        text = ", ".join(f"{role} {cpu_s:.2f}" for role, cpu_s in listed if cpu_s >= 0.005)
        total = _of(found, lambda m: sum(m.cpu_s_per_1k_tokens.values()), 2)
        rows.append([cell.title, systems[key].name, total, text])
    head = ["prompt/answer", "system", "all", "by process"]
    print_table("CPU seconds per 1,000 output tokens", head, rows)


def _print_memory(results: Results, systems: dict[str, System]) -> None:
    rows = []
    for key, system in systems.items():
        found = [m.memory for (_, k), measured in results.items() if k == key for m in measured]
        pss, peak = max(m.pss_mib for m in found), max(m.peak_rss_mib for m in found)
        rows.append([system.name, f"{pss:.0f}", f"{peak:.0f}"])
    head = ["system", "most PSS after a cell", "sum of peak RSS"]
    print_table("Memory, MiB, all processes, 1 GiB of KV cache included", head, rows)


def _figures(results: Results, systems: dict[str, System]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    cells = _cells(results)
    for metric in METRICS if OURS in systems else ():
        worst = min if metric.is_more_better else max
        if BARE in systems:
            mids = [_ratio(results, cell, metric, OURS, BARE).mid for cell in cells]
            figures[f"{metric.key}_ratio"] = Figure(geometric_mean(mids), metric.target)
            figures[f"{metric.key}_ratio_worst_cell"] = Figure(worst(mids), metric.target)
        for peer in (PEER, PEER_DIRECT):
            if peer in systems:
                mids = [_ratio(results, cell, metric, OURS, peer).mid for cell in cells]
                name = f"{metric.key}_vs_{peer.replace('-', '_')}_worst_cell"
                figures[name] = Figure(worst(mids), "> 1.0" if metric.is_more_better else "< 1.0")
    return figures


if __name__ == "__main__":
    sys.exit(main())
