"""What each part of watching costs a gateway: processor time for each request, part by part.

One router, one echo engine and, of each part, one gateway process that has only that switched on.
They are asked in turn, many short turns in an order that is drawn each time, by the same client and
before the same engine. A gateway's processor time says less than throughput of what else wants the
processor; but caches are shared, and on a crowded machine it scatters by more than any part takes.
A scrape is measured by itself, as turns are shorter than the time between two.
"""

import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import psutil
import uvloop

from bench.arriero_system import describe_model
from bench.load import Ask, chat_asks, run_load
from bench.report import Figure, print_table, say
from bench.span_sink import SpanSink, taking_spans
from bench.systems import MODEL_NAME, NotRunningError, has_answer
from serve_app.config import Settings, parse_settings
from tests.support.gateway_process import GatewayProcesses
from tests.support.platform import LocalPlatform

NOTHING, EVERYTHING = "nothing", "everything"
_OFF: dict[str, Any] = {"metrics": {"enabled": False}, "logging": {"level": "WARNING"}}
_METRICS: dict[str, Any] = {"metrics": {"enabled": True}}
_LINES: dict[str, Any] = {"logging": {"level": "INFO", "format": "json"}}
_SCRAPE_S = 5.0
_SCRAPES = 50
_READY_S = 200.0
_SETTLE_S = 1.2
"""Spans and records leave within a second: they belong to the turn that has just ended."""


@dataclass(frozen=True)
class Load:
    """What a turn asks for.

    Attributes:
        tokens_per_s: Pace of a stream; None says all at once.
        n_requests: In a turn.
        rounds: Turns of each part.
    """

    title: str
    tokens_per_s: float | None
    output_tokens: int
    clients: int
    n_requests: int
    rounds: int

    def asks(self, seed: str) -> Iterator[Ask]:
        """Makes requests."""
        rng, is_stream = random.Random(seed), self.tokens_per_s is not None
        return chat_asks(MODEL_NAME, self.output_tokens, rng, is_stream=is_stream)


LOADS = {
    "unary": Load("unary of 16 tokens", None, 16, 16, 400, 20),
    "streams": Load("streams of 250 tokens", 500.0, 250, 16, 32, 20),
}


def measure_parts(seed: int, sample: float, *, rounds: int | None) -> dict[str, Figure]:
    """Measures all loads; returns what everything costs beside nothing.

    Args:
        seed: Of prompts and turns.
        sample: Share of requests that the last two parts trace.
        rounds: None is as many as the loads say.

    Raises:
        NotRunningError: A gateway does not answer, or answers wrongly.
    """
    figures: dict[str, Figure] = {}
    for name, load in LOADS.items():
        with taking_spans() as sink, tempfile.TemporaryDirectory() as folder:
            parts = _parts(sink, sample)
            with _gateways(load, parts, Path(folder)) as gateways:
                spent = _take_turns(gateways, load, rounds or load.rounds, seed)
                scrape_s = _time_scrape(gateways["metrics"])
        _report(load, spent, scrape_s)
        pairs = zip(spent[EVERYTHING], spent[NOTHING], strict=True)
        ratio = median(on / off for on, off in pairs)
        figures[f"gateway_cpu_everything_vs_nothing_{name}"] = Figure(ratio, "<= 1.01")
    return figures


def _parts(sink: SpanSink, sample: float) -> dict[str, dict[str, Any]]:
    def traces(ratio: float) -> dict[str, Any]:
        return {"tracing": {"endpoint": sink.endpoint, "sample_ratio": ratio}}

    return {
        NOTHING: _OFF,
        "metrics": _OFF | _METRICS,
        "lines": _OFF | _LINES,
        "traces, of none": _OFF | traces(0.0),
        f"traces, of {sample:g}": _OFF | traces(sample),
        "traces, of all": _OFF | traces(1.0),
        EVERYTHING: _METRICS | _LINES | traces(sample),
    }


@dataclass(frozen=True)
class _Watched:
    """One gateway.

    Attributes:
        metrics_at: Where it shows its metrics; empty where it has none.
    """

    url: str
    process: psutil.Process
    metrics_at: str

    def cpu_s(self) -> float:
        """Processor time so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def _gateways(
    load: Load, parts: Mapping[str, dict[str, Any]], folder: Path
) -> Iterator[dict[str, _Watched]]:
    settings = [_settings(load, part, folder) for part in parts.values()]
    with LocalPlatform(
        settings[0],
        folder,
        engines_in_processes=True,
        routers_in_processes=True,
        ledger_in_process=True,
        n_gateways=0,
    ):
        gateways = GatewayProcesses(settings, folder)
        try:
            _wait_for(gateways)
            found = zip(parts, gateways.urls, gateways.processes(), strict=True)
            yield {name: _Watched(url, psutil.Process(pid), at) for name, url, (pid, at) in found}
            gateways.check()
        finally:
            gateways.kill()


def _settings(load: Load, part: dict[str, Any], folder: Path) -> Settings:
    pace = {} if load.tokens_per_s is None else {"tokens_per_s": load.tokens_per_s}
    model = describe_model(MODEL_NAME, {"kind": "echo", "max_num_seqs": 1024, **pace})
    return parse_settings({"models": [model], "store": {"state_dir": str(folder)}, **part})


def _wait_for(gateways: GatewayProcesses) -> None:
    give_up_s = time.monotonic() + _READY_S
    for url in gateways.urls:
        while not has_answer(url):
            gateways.check()
            if time.monotonic() > give_up_s:
                raise NotRunningError(f"{url} does not answer.\n{gateways.log.read_text()[-3000:]}")
            time.sleep(0.5)


def _take_turns(
    gateways: Mapping[str, _Watched], load: Load, rounds: int, seed: int
) -> dict[str, list[float]]:
    """Returns seconds of the processor for each request, of each part by round."""
    spent: dict[str, list[float]] = {name: [] for name in gateways}
    rng = random.Random(seed)
    for name in gateways:
        _turn(gateways[name], load, f"{seed}-warm")
    for n in range(rounds):
        for name in rng.sample(list(gateways), len(gateways)):
            spent[name].append(_turn(gateways[name], load, f"{seed}-{n}"))
        texts = (f"{name} {values[-1] * 1e6:.0f}" for name, values in spent.items())
        say(f"round {n + 1}/{rounds}  {load.title}, us a request: {', '.join(texts)}")
    return spent


def _turn(gateway: _Watched, load: Load, seed: str) -> float:
    before_s = gateway.cpu_s()
    asks = load.asks(seed)
    result = uvloop.run(run_load(gateway.url, asks, load.clients, load.n_requests))
    if result.n_errors:
        raise NotRunningError(f"{result.n_errors} errors, such as {result.errors}")
    time.sleep(_SETTLE_S)
    return (gateway.cpu_s() - before_s) / load.n_requests


def _time_scrape(gateway: _Watched) -> float:
    """Returns seconds of the processor that a scrape takes."""
    before_s = gateway.cpu_s()
    for _ in range(_SCRAPES):
        httpx.get(f"http://{gateway.metrics_at}/metrics").raise_for_status()
    return (gateway.cpu_s() - before_s) / _SCRAPES


def _report(load: Load, spent: Mapping[str, list[float]], scrape_s: float) -> None:
    rows = []
    for name, values in spent.items():
        more = [(a - b) * 1e6 for a, b in zip(values, spent[NOTHING], strict=True)]
        low, _, high = quantiles(more, n=4)
        share = median(more) / (median(spent[NOTHING]) * 1e6)
        rows.append(
            [
                name,
                f"{median(values) * 1e6:.0f}",
                f"{median(more):+.0f} ({low:+.0f} to {high:+.0f})",
                f"{share:+.1%}",
            ]
        )
    head = ["what is on", "us of CPU a request", "more than with nothing (quartiles)", "share"]
    print_table(f"A gateway, {load.title}", head, rows)
    core = scrape_s / _SCRAPE_S
    print(f"\nA scrape takes {scrape_s * 1e3:.1f} ms; every {_SCRAPE_S:g} s: {core:.2%} of a core.")
