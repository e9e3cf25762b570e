"""What it costs to see: the platform with all metrics and a Prometheus that scrapes, and without.

    python -m bench.observability            five rounds, the real model and an echo engine
    python -m bench.observability --quick    two rounds, echo engines only

Two whole platforms on Ray; they take turns within each round, who waits is held still. One has
`metrics.enabled: false`; the other is scraped every five seconds, as `make monitoring` does. Echo
engines answer at once or at a pace, so that what is measured is the gateway; with the real model it
is the engine.

Then memory: one platform in this process takes 50,000 requests from 10,000 tenants. What each
tenant leaves behind once is there after the first 10,000; from then on it has to stay flat.
"""

import argparse
import gc
import random
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench.load import Ask, chat_asks, completion_asks, run_load
from bench.measure import Asks, Measured, measure, running
from bench.report import (
    Figure,
    Spread,
    describe_run,
    geometric_mean,
    print_figures,
    print_table,
    say,
)
from bench.systems import (
    ARRIERO_ROLES,
    ENGINE_ARGS,
    MODEL_NAME,
    NotRunningError,
    RayServed,
    arriero_application,
    describe_model,
)
from serve_app.config import Settings, parse_settings
from serve_app.embedded_model import prepare_embedded_model
from serve_app.keys import hash_key
from tests.support.platform import LocalPlatform
from tests.support.prometheus import PrometheusServer

ON, OFF = "on", "off"
_PACED, _REAL = "echo-paced", "real"
_TENANTS = 10_000
_REQUESTS = 50_000
_STEP = 5_000
_CLIENTS = 32


@dataclass(frozen=True)
class Cell:
    """One load."""

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
    Cell("echo, unary of 16 tokens, 32 clients", MODEL_NAME, 32, 2000, 16),
    Cell("echo, streams of 500 tokens, 16 clients", _PACED, 16, 48, 500),
)
REAL_CELL = Cell("SmolLM2, 64 in and 64 out, 16 clients", _REAL, 16, 128, 64, is_chat=False)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    prepare_embedded_model(progress=say)
    rounds = options.rounds or (2 if options.quick else 5)
    cells = ECHO_CELLS if options.quick else (*ECHO_CELLS, REAL_CELL)
    figures: dict[str, Figure] = {}
    print(describe_run("make bench-observability" + (" ARGS=--quick" if options.quick else "")))
    try:
        if options.only != "memory":
            figures |= _compare(cells, rounds, options.seed)
        if options.only != "throughput":
            figures |= _watch_memory(_REQUESTS if not options.quick else 2 * _TENANTS)
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
    parser.add_argument("--only", choices=("throughput", "memory"), help="one of the two parts")
    return parser.parse_args()


# --- throughput -----------------------------------------------------------------------------


def _compare(cells: tuple[Cell, ...], rounds: int, seed: int) -> dict[str, Figure]:
    models = {cell.model for cell in cells}
    results: dict[tuple[Cell, str], list[Measured]] = defaultdict(list)
    with ExitStack() as stack:
        systems = stack.enter_context(
            running({ON: _platform(models, is_on=True), OFF: _platform(models, is_on=False)})
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = systems[ON].base_url.removesuffix("/v1")
        stack.enter_context(PrometheusServer(folder, url, every="5s"))
        for n in range(rounds):
            for i, cell in enumerate(cells):
                asks = cell.asks(f"{seed}-{n}-{i}")
                for key in (ON, OFF) if (n + i) % 2 else (OFF, ON):
                    found = measure(systems[key], asks, asks, cell.clients, cell.n_requests)
                    results[cell, key].append(found)
                    say(
                        f"round {n + 1}/{rounds}  {cell.title:<42} {key:<4}"
                        f"{found.load.tokens_per_s:8.0f} tokens/s"
                    )
    return _judge(results, cells)


def _platform(models: set[str], *, is_on: bool) -> RayServed:
    echo: dict[str, Any] = {"kind": "echo", "max_num_seqs": 1024}
    engines: dict[str, dict[str, Any]] = {
        MODEL_NAME: echo,
        _PACED: {**echo, "tokens_per_s": 1000.0},
        _REAL: {"kind": "vllm", "args": dict(ENGINE_ARGS)},
    }
    described = [describe_model(name, engines[name]) for name in engines if name in models]
    application = arriero_application(described, metrics={"enabled": is_on})
    return RayServed(f"metrics {ON if is_on else OFF}", [application], {}, ARRIERO_ROLES)


def _judge(
    results: dict[tuple[Cell, str], list[Measured]], cells: tuple[Cell, ...]
) -> dict[str, Figure]:
    rows, ratios = [], []
    for cell in cells:
        on, off = results[cell, ON], results[cell, OFF]
        pairs = zip(on, off, strict=True)
        ratio = Spread.of(a.load.tokens_per_s / b.load.tokens_per_s for a, b in pairs)
        ratios.append(ratio.mid)
        cpu = Spread.of(_gateway_s(a) / _gateway_s(b) for a, b in zip(on, off, strict=True))
        rows.append(
            [
                cell.title,
                Spread.of(m.load.tokens_per_s for m in on).text(0),
                Spread.of(m.load.tokens_per_s for m in off).text(0),
                ratio.text(3),
                cpu.text(3),
                f"{max(m.others_cores for m in on + off):.2f}",
            ]
        )
    head = ["load", "tokens/s, on", "tokens/s, off", "on / off", "gateway's CPU, on / off"]
    print_table("Median (lowest-highest)", [*head, "others' cores"], rows)
    return {"throughput_on_vs_off": Figure(geometric_mean(ratios), ">= 0.99")}


def _gateway_s(measured: Measured) -> float:
    return max(0.01, measured.cpu_s.get("gateway", 0.0))


# --- memory ---------------------------------------------------------------------------------


def _watch_memory(n_requests: int) -> dict[str, Figure]:
    rows, sizes_mib = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with LocalPlatform(_many_tenants(folder), folder) as platform:
            for done in range(_STEP, n_requests + 1, _STEP):
                _ask_as_many(platform.url, done - _STEP, _STEP)
                gc.collect()
                sizes_mib[done] = psutil.Process().memory_info().rss / (1 << 20)
                lines = platform.metrics.render().count("\n")
                rows.append([f"{done:,}", f"{sizes_mib[done]:.0f}", f"{lines:,}"])
                say(f"{done:,} requests: {sizes_mib[done]:.0f} MiB, {lines:,} lines of metrics")
    print_table("Memory", ["requests", "resident MiB", "lines of metrics"], rows)
    growth = sizes_mib[n_requests] / sizes_mib[_TENANTS]
    return {"memory_after_all_vs_after_each_tenant_once": Figure(growth, "<= 1.03")}


def _many_tenants(folder: Path) -> Settings:
    model = describe_model(MODEL_NAME, {"kind": "echo", "max_num_seqs": 1024})
    tenants = [
        {"id": f"tenant-{i}", "keys": [{"hash": hash_key(f"key-{i}")}]} for i in range(_TENANTS)
    ]
    return parse_settings(
        {
            "models": [model],
            "auth": {"kind": "keys"},
            "tenants": tenants,
            "store": {"state_dir": str(folder / "state")},
            "logging": {"level": "WARNING"},
        }
    )


def _ask_as_many(url: str, first: int, n_requests: int) -> None:
    def asks() -> Iterator[Ask]:
        for i in range(first, first + n_requests):
            body = b'{"model": "%s", "prompt": "One two three", "max_tokens": 4}'
            key = f"key-{i % _TENANTS}"
            yield Ask("/v1/completions", body % MODEL_NAME.encode(), False, None, 4, key)

    result = uvloop.run(run_load(f"{url}/v1", asks(), _CLIENTS, n_requests))
    if result.n_errors:
        raise NotRunningError(f"{result.n_errors} errors, such as {result.errors}")


if __name__ == "__main__":
    sys.exit(main())
