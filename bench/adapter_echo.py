"""Adapters on echo engines: the whole platform in this process, with loads that cost time.

An engine's steps wait while an adapter comes into its memory, as a real one's do. Engines, router
and gateway are the real ones and talk over sockets; only Ray and the weights are missing.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from bench.adapter_load import Draw, Run, ask_of, draw_trace, run_trace
from bench.adapter_routings import OURS, ROUTINGS, routed
from bench.load import Answer, Connection, draw_prompt, percentiles
from bench.report import Figure, print_table, say
from serve_app.config import parse_settings
from serve_app.embedded_model import prepare_embedded_model
from serve_app.keys import FreshKey, make_key
from tests.support.adapters import make_family
from tests.support.platform import LocalPlatform
from tests.support.settings import write_args, write_model

MODEL = "echo"
_ADAPTERS = 200
_LOAD_S = 0.1
_STEP_S = 0.05
_SEATS = 16
_SLOTS, _IN_MEMORY = 8, 32
_CLIENTS_OF_AN_ENGINE = 12
_LENGTHS = (16, 16)
_ALPHA = 0.6
_SAMPLE_S = 0.25
Figures = dict[str, Figure]


@dataclass(frozen=True)
class Stage:
    """A platform with adapters, and who may ask it."""

    platform: LocalPlatform
    names: Sequence[str]
    keys: Sequence[FreshKey]

    def engines(self) -> list[dict[str, Any]]:
        """As `/ready` shows them."""
        return self.platform.list_engines()


@contextmanager
def _staged(family: Path, names: Sequence[str], n_engines: int, **adapters: Any) -> Iterator[Stage]:
    keys = [make_key(), make_key()]
    model = write_model(
        MODEL,
        engine={
            "kind": "echo",
            "batch": {"step_s": _STEP_S},
            "max_num_seqs": _SEATS,
            "max_model_len": 512,
            "adapter_load_s": _LOAD_S,
        },
        adapters={"slots": _SLOTS, "in_memory": _IN_MEMORY} | adapters,
        replicas={"min": n_engines, "max": n_engines},
    )
    with tempfile.TemporaryDirectory(prefix="arb-") as folder:
        settings = write_args(
            model,
            auth={"kind": "keys"},
            tenants=[{"id": f"t{i}", "keys": [{"hash": key.hash}]} for i, key in enumerate(keys)],
            adapters={
                "families": [{"base": MODEL, "source": str(family)}],
                # One for all runs: what is on the node's disk is no concern here.
                "cache": {"path": str(family.with_name("cache"))},
            },
            store={"state_dir": f"{folder}/state"},
        )
        with LocalPlatform(parse_settings(settings), Path(folder)) as platform:
            yield Stage(platform, [f"{MODEL}:{name}" for name in names], keys)


@contextmanager
def _family() -> Iterator[tuple[Path, list[str]]]:
    with tempfile.TemporaryDirectory(prefix="arb-") as folder:
        family = Path(folder) / "family"
        model = prepare_embedded_model()
        names = make_family(family, model, _ADAPTERS, ranks=[8], n_contents=4, are_different=True)
        yield family, names


# --- where requests go ------------------------------------------------------------------------


@dataclass
class _Balance:
    """Output tokens a second of each engine, looked at again and again."""

    sums: dict[str, float] = field(default_factory=dict)

    async def watch(self, stage: Stage) -> None:
        """Looks until it is cancelled."""
        while True:
            await asyncio.sleep(_SAMPLE_S)
            for engine in await asyncio.to_thread(stage.engines):
                before = self.sums.get(engine["id"], 0.0)
                self.sums[engine["id"]] = before + engine["tokens_per_s"]

    @property
    def value(self) -> float:
        """The busiest engine's tokens beside the mean."""
        return max(self.sums.values()) * len(self.sums) / sum(self.sums.values())


def report_routing(n_requests: int, engines: Sequence[int], figures: Figures) -> None:
    """Serves the same traces by each way of routing.

    Args:
        n_requests: For each engine.
        engines: How many there are.
        figures: Are added to, one case after the other.
    """
    rows: list[list[str]] = []
    with _family() as (family, names):
        try:
            for n_engines in engines:
                _compare_routings(family, names, n_engines, n_requests, rows, figures)
        finally:
            head = ["routing", "loads per 1,000", "busiest / mean", "tokens/s", "TTFT p50, p99, ms"]
            print_table(f"{_ADAPTERS} adapters on echo engines, live", head, rows)


def _compare_routings(
    family: Path,
    names: Sequence[str],
    n_engines: int,
    n_requests: int,
    rows: list[list[str]],
    figures: Figures,
) -> None:
    loads: dict[str, float] = {}
    for name in ROUTINGS if n_engines > 1 else [OURS]:
        run, n_loads, balance = _route(name, family, names, n_engines, n_requests)
        loads[name] = 1000 * n_loads / len(run.draws)
        ttft = percentiles([answer.ttft_s for answer in run.answers])
        times = f"{1000 * ttft['p50']:.0f}, {1000 * ttft['p99']:.0f}"
        row = [f"{n_engines} engines, {name}", f"{loads[name]:.0f}", f"{balance:.2f}"]
        rows.append([*row, f"{run.tokens_per_s:.0f}", times])
        say(" | ".join(rows[-1]))
        if name == OURS:
            figures[f"balance, {n_engines} engines"] = Figure(balance, "<= 1.3")
        else:
            ratio = loads[OURS] / loads[name]
            figures[f"loads beside {name}, {n_engines} engines"] = Figure(ratio, "< 1")


def _route(
    routing: str, family: Path, names: Sequence[str], n_engines: int, n_requests: int
) -> tuple[Run, float, float]:
    clients = _CLIENTS_OF_AN_ENGINE * n_engines
    with routed(routing), _staged(family, names, n_engines) as stage:
        key = stage.keys[0].text
        every_one = [Draw(i, tuple(draw_prompt(8, random.Random(i))), 1) for i in range(len(names))]
        _ask_all(stage, every_one, clients, key)
        before = _loads(stage)
        trace = draw_trace(len(names), n_requests * n_engines, _ALPHA, "routing", _LENGTHS)
        balance = _Balance()
        watching = stage.platform._loop
        watch = asyncio.run_coroutine_threadsafe(balance.watch(stage), watching)
        run = _ask_all(stage, trace, clients, key)
        watch.cancel()
        return run, _loads(stage) - before, balance.value


def _ask_all(stage: Stage, trace: Sequence[Draw], clients: int, key: str) -> Run:
    run = run_trace(stage.platform.url, trace, stage.names, MODEL, clients, key)
    assert not run.errors, run.errors[:3]
    return run


def _loads(stage: Stage) -> float:
    time.sleep(1.5)  # The router hears of them within half a second, the gateway within one more.
    return float(sum(engine["adapters"]["loads"] for engine in stage.engines()))


# --- a floor for each tenant ------------------------------------------------------------------


@dataclass
class _Calm:
    """A tenant with two adapters that asks now and then."""

    answers: list[Answer] = field(default_factory=list)
    n_found: int = 0
    """Requests whose adapter was in the engine's memory when they were sent."""


def report_floor(length_s: float) -> Figures:
    """Serves a tenant with 2 adapters alone, then beside one that goes through 198 others."""
    rows, figures = [], Figures()
    with _family() as (family, names):
        for case, floor, is_alone in (
            ("alone", 2, True),
            ("beside 198, floor 2", 2, False),
            ("beside 198, no floor", 0, False),
        ):
            with _staged(family, names, 1, floor=floor) as stage:
                calm = uvloop.run(_share(stage, length_s, is_alone=is_alone))
            errors = [answer.error for answer in calm.answers if answer.error]
            assert not errors, errors[:3]
            ttft = percentiles([answer.ttft_s for answer in calm.answers])
            rate = calm.n_found / len(calm.answers)
            say(f"{case}: hit rate {rate:.2f}, TTFT p50 {1000 * ttft['p50']:.0f} ms")
            rows.append([case, f"{rate:.2f}", *(f"{1000 * ttft[p]:.0f}" for p in ("p50", "p99"))])
            figures[f"hit_rate, {case}"] = Figure(rate, ">= 0.98" if floor and not is_alone else "")
            figures[f"ttft_p50_s, {case}"] = Figure(ttft["p50"])
            figures[f"ttft_p99_s, {case}"] = Figure(ttft["p99"])
    head = ["two adapters of one tenant", "found in memory", "TTFT p50, ms", "p99"]
    print_table(f"Memory for {_IN_MEMORY} adapters, two tenants", head, rows)
    return figures


async def _share(stage: Stage, length_s: float, *, is_alone: bool) -> _Calm:
    calm = _Calm()
    rng = random.Random(1)
    await _ask(stage, 0, rng, 0)
    await _ask(stage, 1, rng, 0)
    async with asyncio.timeout(length_s + 60.0):
        tasks = [] if is_alone else [asyncio.ensure_future(_thrash(stage, i)) for i in range(8)]
        await asyncio.sleep(min(5.0, length_s / 3))
        until_s = time.monotonic() + length_s
        while time.monotonic() < until_s:
            await asyncio.sleep(rng.uniform(0.2, 0.8))
            number = rng.randrange(2)
            calm.n_found += _is_in_memory(stage, number)
            calm.answers.append(await _ask(stage, number, rng, 0))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return calm


async def _thrash(stage: Stage, seed: int) -> None:
    rng = random.Random(seed + 100)
    while True:
        await _ask(stage, rng.randrange(2, len(stage.names)), rng, 1)


async def _ask(stage: Stage, number: int, rng: random.Random, tenant: int) -> Answer:
    draw = Draw(number, tuple(draw_prompt(16, rng)), 16)
    connection = Connection(stage.platform.url)
    try:
        ask = ask_of(draw, stage.names, MODEL, stage.keys[tenant].text)
        return await connection.ask(ask)
    finally:
        connection.close()


def _is_in_memory(stage: Stage, number: int) -> bool:
    (engine,) = stage.platform.engines.values()
    registry = stage.platform._gateways[0].gateway.adapters.registry
    adapter = registry.find(stage.names[number])
    version = None if adapter is None else registry.current(adapter)
    return version is not None and version.id in engine._make_report(True).adapters.in_memory
