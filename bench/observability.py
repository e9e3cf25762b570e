"""What it costs to see: the platform with everything on, and with everything off.

    python -m bench.observability            five rounds, the real model and echo engines
    python -m bench.observability --quick    two rounds, echo engines only

Two whole platforms on Ray; they take turns within each round, who waits is held still. One shows
its metrics to a Prometheus that scrapes every five seconds, as `make monitoring` does; writes a
line of JSON for each request; and sends traces of every tenth request to a collector. The other has
`metrics.enabled: false`, logs from WARNING on and traces nothing. Records of requests are part of
usage and cannot be switched off: both have them. Prometheus and the collector take their part of
the same processors.

First, what of this costs a gateway how much, part by part: `bench.gateway_parts`.

Echo engines answer at once or at a pace that no gateway can follow, so that what is measured is the
gateway; with the real model it is the engine. Then memory: `bench.many_tenants`.
"""

import argparse
import math
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.arriero_system import ARRIERO_ROLES, arriero_application, describe_model
from bench.gateway_parts import measure_parts
from bench.load import Ask, chat_asks, completion_asks
from bench.many_tenants import watch_memory
from bench.measure import Asks, Measured, measure, running
from bench.ray_served import RayServed
from bench.report import (
    Figure,
    Spread,
    describe_run,
    geometric_mean,
    print_figures,
    print_table,
    say,
)
from bench.span_sink import SpanSink, taking_spans
from bench.systems import ENGINE_ARGS, MODEL_NAME, NotRunningError, System
from serve_app.embedded_model import prepare_embedded_model
from tests.support.prometheus import PrometheusServer

ON, OFF = "on", "off"
_PACED, _REAL = "echo-paced", "real"
_PLAIN: dict[str, Any] = {"metrics": {"enabled": False}, "logging": {"level": "WARNING"}}
_SCRAPE_S = 5
_TARGETS_S = 30.0


@dataclass(frozen=True)
class Cell:
    """One load, long enough for some scrapes."""

    title: str
    model: str
    clients: int
    n_requests: int
    output_tokens: int
    is_chat: bool = True

    def asks(self, seed: str) -> Asks:
        """Makes this cell's requests."""

        def make(n: int) -> Iterator[Ask]:
            rng = random.Random(f"{seed}-{n}")
            if self.is_chat:
                is_stream = self.model == _PACED
                return chat_asks(self.model, self.output_tokens, rng, is_stream=is_stream)
            return completion_asks(self.model, 64, self.output_tokens, rng)

        return make


ECHO_CELLS = (
    Cell("echo, unary of 16 tokens, 32 clients", MODEL_NAME, 32, 6000, 16),
    Cell("echo, streams of 500 tokens, 32 clients", _PACED, 32, 800, 500),
)
REAL_CELL = Cell("SmolLM2, 64 in and 64 out, 16 clients", _REAL, 16, 80, 64, is_chat=False)


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        found: What was measured.
        n_scrapes: How often Prometheus read the gateway meanwhile.
    """

    found: Measured
    n_scrapes: float


Results = dict[tuple[Cell, str], list[Run]]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    prepare_embedded_model(progress=say)
    rounds = options.rounds or (2 if options.quick else 5)
    cells: tuple[Cell, ...] = ECHO_CELLS if options.quick else (*ECHO_CELLS, REAL_CELL)
    if options.requests_percent:
        cells = tuple(_shorten(cell, options.requests_percent) for cell in cells)
    figures: dict[str, Figure] = {}
    print(describe_run(f"make bench-observability ARGS='{' '.join(sys.argv[1:])}'"))
    try:
        if options.only in (None, "parts"):
            figures |= measure_parts(options.seed, options.sample, rounds=options.rounds)
        if options.only in (None, "throughput"):
            figures |= _compare(cells, rounds, options.seed, options.sample)
        if options.only in (None, "memory"):
            figures |= watch_memory(20_000 if options.quick else 50_000)
    except NotRunningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print()
    print_figures("observability", figures, is_quick=options.quick)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, no real model")
    parser.add_argument("--rounds", type=int, help="how often each load is measured")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument(
        "--only", choices=("parts", "throughput", "memory"), help="one of the three"
    )
    parser.add_argument(
        "--sample", type=float, default=0.1, help="share of requests traced; 0 is off"
    )
    parser.add_argument(
        "--requests-percent", type=int, help="shorter or longer loads, for a try (100 is usual)"
    )
    return parser.parse_args()


def _shorten(cell: Cell, percent: int) -> Cell:
    return replace(cell, n_requests=max(cell.clients, cell.n_requests * percent // 100))


def _compare(cells: tuple[Cell, ...], rounds: int, seed: int, sample: float) -> dict[str, Figure]:
    models = {cell.model for cell in cells}
    results: Results = defaultdict(list)
    with ExitStack() as stack:
        sink = stack.enter_context(taking_spans())
        lit: dict[str, Any] = {"logging": {"level": "INFO", "format": "json"}}
        if sample:
            lit["tracing"] = {"endpoint": sink.endpoint, "sample_ratio": sample}
        platforms: dict[str, System] = {
            ON: _platform(ON, models, lit),
            OFF: _platform(OFF, models, _PLAIN),
        }
        systems = stack.enter_context(running(platforms))
        prometheus = stack.enter_context(_scraping(systems[ON], 2 + 2 * len(models)))
        for n in range(rounds):
            for i, cell in enumerate(cells):
                for key in (ON, OFF) if (n + i) % 2 else (OFF, ON):
                    run = _run(systems[key], cell, f"{seed}-{n}-{i}", prometheus)
                    results[cell, key].append(run)
                    say(
                        f"round {n + 1}/{rounds}  {cell.title:<42} {key:<4}"
                        f"{run.found.load.tokens_per_s:8.0f} tokens/s  {run.n_scrapes:.0f} scrapes"
                    )
        _check_it_was_on(results, sink, is_traced=bool(sample))
    return _judge(results, cells)


def _platform(key: str, models: set[str], sections: dict[str, Any]) -> RayServed:
    echo: dict[str, Any] = {"kind": "echo", "max_num_seqs": 1024}
    engines: dict[str, dict[str, Any]] = {
        MODEL_NAME: echo,
        _PACED: {**echo, "tokens_per_s": 2000.0},
        _REAL: {"kind": "vllm", "args": dict(ENGINE_ARGS)},
    }
    described = [describe_model(name, engines[name]) for name in engines if name in models]
    application = arriero_application(described, **sections)
    return RayServed(f"everything {key}", [application], {}, ARRIERO_ROLES)


@contextmanager
def _scraping(system: System, n_targets: int) -> Iterator[PrometheusServer]:
    """Starts a Prometheus that knows every process by its address, too.

    One that was held still is found again a while after it goes on: too late for a short run.
    """
    url = system.base_url.removesuffix("/v1")
    system.processes.resume()
    targets: list[dict[str, Any]] = []
    give_up_s = time.monotonic() + _TARGETS_S
    while len(targets) < n_targets:
        if time.monotonic() > give_up_s:
            raise NotRunningError(f"{len(targets)} of {n_targets} processes show metrics")
        time.sleep(1.0)
        targets = httpx.get(f"{url}/metrics/targets", timeout=10.0).raise_for_status().json()
    system.processes.pause()
    with tempfile.TemporaryDirectory() as name:
        every = f"{_SCRAPE_S}s"
        with PrometheusServer(Path(name), url, more=targets, every=every) as prometheus:
            yield prometheus


def _run(system: System, cell: Cell, seed: str, prometheus: PrometheusServer) -> Run:
    # Prompts of the warm-up are others: a prefix cache would know them.
    short = replace(cell, output_tokens=min(cell.output_tokens, 16))
    warm_up = short.asks(f"{seed}-warm")
    found = measure(system, cell.asks(seed), warm_up, cell.clients, cell.n_requests)
    span = f"{math.ceil(found.load.wall_s)}s"
    return Run(found, prometheus.value(f'sum_over_time(up{{process="gateway"}}[{span}])'))


def _check_it_was_on(results: Results, sink: SpanSink, *, is_traced: bool) -> None:
    """Raises NotRunningError where a run with everything on was not seen by anybody."""
    time.sleep(_SCRAPE_S)  # The last spans leave in batches.
    unseen = [cell.title for (cell, key), runs in results.items() if key == ON if not _seen(runs)]
    if unseen or bool(sink.n_spans()) != is_traced:
        raise NotRunningError(f"nobody looked: {sink.n_spans()} spans; not scraped: {unseen}")
    say(f"{sink.n_spans():,} spans were sent")


def _seen(runs: list[Run]) -> bool:
    return all(run.n_scrapes for run in runs)


def _judge(results: Results, cells: tuple[Cell, ...]) -> dict[str, Figure]:
    rows: list[list[str]] = []
    ratios: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        on, off = (results[cell, key] for key in (ON, OFF))
        speeds = [[run.found.load.tokens_per_s for run in runs] for runs in (on, off)]
        costs = [[_gateway_s(run.found) for run in runs] for runs in (on, off)]
        ratio = Spread.of(a / b for a, b in zip(*speeds, strict=True))
        ratios["real_model" if cell.model == _REAL else "gateway_alone"].append(ratio.mid)
        rows.append(
            [
                cell.title,
                *(Spread.of(each).text(0) for each in speeds),
                ratio.text(3),
                Spread.of(a / b for a, b in zip(*costs, strict=True)).text(3),
                f"{sum(run.n_scrapes for run in on):.0f}",
                *(f"{max(run.found.others_cores for run in runs):.2f}" for runs in (on, off)),
            ]
        )
        _print_roles(cell, on, off)
    head = ["load", "tokens/s, on", "tokens/s, off", "on / off", "gateway's CPU, on / off"]
    others = ["scrapes", "others' cores, on", "others' cores, off"]
    print_table("Median (lowest-highest)", [*head, *others], rows)
    return {
        f"throughput_on_vs_off_{group}": Figure(geometric_mean(found), ">= 0.99")
        for group, found in ratios.items()
    }


def _print_roles(cell: Cell, on: list[Run], off: list[Run]) -> None:
    """What else than the gateway works for each request: whoever reads lines, above all."""
    roles = sorted({role for run in on for role in run.found.cpu_s})
    rows = []
    for role in roles:
        us = [
            median(run.found.cpu_s.get(role, 0.0) / cell.n_requests * 1e6 for run in runs)
            for runs in (on, off)
        ]
        rows.append([role, *(f"{value:.0f}" for value in us)])
    print_table(f"us of CPU a request, {cell.title}", ["process", "on", "off"], rows)


def _gateway_s(measured: Measured) -> float:
    return max(0.01, measured.cpu_s.get("gateway", 0.0))


if __name__ == "__main__":
    sys.exit(main())
