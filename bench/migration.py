"""What the death of an engine costs those whose requests it ran.

    python -m bench.migration                   1,000 kills of echo engines, 50 of real ones
    python -m bench.migration --quick           40 and 3
    python -m bench.migration --only echo       one of the two, or `real`

Streams run all the time. Again and again an engine's process gets SIGKILL while it runs some of
them, and another one is started in its place. Every answer is compared token by token with what it
is without any kill, every request's usage with its row in the store. The pause is the time between
the last token that a client got before a kill and the next one, of those streams that the engine
ran. The same seed draws the same prompts, lengths and victims.

The real model runs in float32: in bfloat16 a token that is computed again, as part of a prompt, may
get numbers whose last bits decide otherwise, as they may in another batch.
"""

import argparse
import asyncio
import random
import sqlite3
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httpx

from bench.kill_load import MODEL, Question, Stream, ask
from bench.report import Figure, describe_run, print_figures, print_table, say
from serve_app.config import parse_settings
from serve_app.embedded_model import prepare_embedded_model
from serve_app.keys import hash_key
from serve_app.messages import EngineId
from tests.support.platform import LocalPlatform
from tests.support.settings import write_args, write_model

_KEY = "key-of-bench"
_DETECTION_S = 1.0
_SEED = 1


@dataclass(frozen=True)
class Plan:
    """One engine kind and what is done to it."""

    name: str
    n_engines: int
    n_streams: int
    n_kills: int
    lengths: tuple[int, int]
    """Of answers, in tokens."""
    between_s: float
    """From one kill to the next, if as many engines as planned are ready by then."""


@dataclass(frozen=True)
class Kill:
    """An engine's death: when, what it ran, and how many tokens those had, prompts included."""

    at_s: float
    streams: tuple[str, ...]
    n_tokens: int


@dataclass
class Run:
    """All that happened."""

    streams: list[Stream] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    prefill_tokens_per_s: float = 0.0


def main() -> int:
    options = _parse_options()
    figures: dict[str, Figure] = {}
    rows = []
    for plan in _plans(options):
        run, n_rows_wrong = measure(plan)
        found = judge(plan, run, n_rows_wrong)
        rows.append([plan.name, *(f"{figure.value:g}" for figure in found.values())])
        head = ["engines", *found]
        figures |= {f"{plan.name}_{name}": figure for name, figure in found.items()}
    print(describe_run("make bench-migration ARGS='" + " ".join(sys.argv[1:]) + "'"))
    print_table("Engines killed under load", head, rows)
    print_figures("migration", figures, is_quick=options.quick)
    return 0 if all(figure.is_ok is not False for figure in figures.values()) else 1


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 kills and 3")
    parser.add_argument("--only", choices=("echo", "real"), help="one kind of engine")
    parser.add_argument("--kills", type=int, help="another number of kills of each kind")
    return parser.parse_args()


def _plans(options: argparse.Namespace) -> list[Plan]:
    n_echo, n_real = (40, 3) if options.quick else (1000, 50)
    echo = Plan("echo", 4, 12, options.kills or n_echo, (50, 400), 0.3)
    real = Plan("real", 2, 6, options.kills or n_real, (40, 160), 2.0)
    return [plan for plan in (echo, real) if options.only in (None, plan.name)]


def measure(plan: Plan) -> tuple[Run, int]:
    """Runs a plan; returns what happened and how many usage rows are wrong."""
    with tempfile.TemporaryDirectory() as folder, _platform_of(plan, Path(folder)) as platform:
        _wait_until_all_ready(platform, plan)
        run = asyncio.run(_run(plan, platform))
        time.sleep(2.0)  # Usage is in the store within a second or so.
        return run, _count_wrong_rows(run, Path(folder) / "state" / "store.db")


@contextmanager
def _platform_of(plan: Plan, folder: Path) -> Iterator[LocalPlatform]:
    path = str(prepare_embedded_model())
    args = {"max_model_len": 2048, "max_num_seqs": 16, "enforce_eager": True, "dtype": "float32"}
    model = write_model(
        MODEL,
        source={"kind": "local", "path": path},
        engine={"kind": "echo", "tokens_per_s": 25.0, "max_num_seqs": 64, "max_model_len": 2048}
        if plan.name == "echo"
        else {"kind": "vllm", "args": args},
        accelerator={"kind": "cpu", "kv_cache_gib": 1, "threads": 1},
    )
    settings = write_args(
        model,
        auth={"kind": "keys"},
        tenants=[{"id": "bench", "keys": [{"hash": hash_key(_KEY)}]}],
        store={"state_dir": str(folder / "state")},
        # Chance alone may kill many engines under one request here.
        limits={"max_engine_deaths": 1000},
    )
    with LocalPlatform(
        parse_settings(settings),
        folder,
        engines_in_processes=True,
        n_engines=plan.n_engines,
        is_waiting=False,
    ) as platform:
        platform.wait_until_ready(600.0)
        yield platform


def _count_ready(platform: LocalPlatform) -> int:
    return sum(engine["state"] == "ready" for engine in platform.list_engines())


def _wait_until_all_ready(platform: LocalPlatform, plan: Plan) -> None:
    platform.wait_until(lambda: _count_ready(platform) >= plan.n_engines, 300.0, "all ready")


async def _run(plan: Plan, platform: LocalPlatform) -> Run:
    rng = random.Random(_SEED)
    run = Run()
    limits = httpx.Limits(max_connections=None)
    headers = {"authorization": f"Bearer {_KEY}"}
    async with httpx.AsyncClient(timeout=300.0, limits=limits, headers=headers) as client:
        questions = await _make_questions(plan, platform, client, rng)
        run.prefill_tokens_per_s = await _measure_prefill(platform, client, rng)
        say(f"{plan.name}: prefill {run.prefill_tokens_per_s:.0f} tokens/s; killing begins")
        stop = asyncio.Event()
        workers = [
            asyncio.create_task(_ask_on(platform, client, questions, rng, run, stop))
            for _ in range(plan.n_streams)
        ]
        await _kill_on(plan, platform, rng, run)
        stop.set()
        await asyncio.gather(*workers)
    return run


async def _make_questions(
    plan: Plan, platform: LocalPlatform, client: httpx.AsyncClient, rng: random.Random
) -> list[Question]:
    """Draws questions and learns their answers while nobody dies."""
    drawn = [
        Question(
            tuple(rng.randrange(1000, 40_000) for _ in range(rng.randrange(8, 64))),
            rng.randint(*plan.lengths),
        )
        for _ in range(2 * plan.n_streams)
    ]
    if plan.name == "echo":
        return [
            Question(q.prompt, q.max_tokens, tuple((q.prompt * q.max_tokens)[: q.max_tokens]))
            for q in drawn
        ]
    streams = [Stream(uuid.uuid4().hex, question) for question in drawn]
    await asyncio.gather(*(ask(platform.url, client, stream) for stream in streams))
    return [Question(s.question.prompt, s.question.max_tokens, tuple(s.ids)) for s in streams]


async def _measure_prefill(
    platform: LocalPlatform, client: httpx.AsyncClient, rng: random.Random
) -> float:
    """Prompt tokens that an idle engine computes in a second."""
    n_tokens, rates = 1000, []
    for _ in range(2):
        prompt = tuple(rng.randrange(1000, 40_000) for _ in range(n_tokens))
        started_s = time.monotonic()
        await ask(platform.url, client, Stream(uuid.uuid4().hex, Question(prompt, 1)))
        rates.append(n_tokens / (time.monotonic() - started_s))
    return max(rates)


async def _ask_on(
    platform: LocalPlatform,
    client: httpx.AsyncClient,
    questions: Sequence[Question],
    rng: random.Random,
    run: Run,
    stop: asyncio.Event,
) -> None:
    while not stop.is_set():
        stream = Stream(uuid.uuid4().hex, rng.choice(questions))
        run.streams.append(stream)
        await ask(platform.url, client, stream)


async def _kill_on(plan: Plan, platform: LocalPlatform, rng: random.Random, run: Run) -> None:
    while len(run.kills) < plan.n_kills:
        await asyncio.sleep(plan.between_s)
        await asyncio.to_thread(_wait_until_all_ready, platform, plan)
        await asyncio.sleep(plan.between_s * rng.random())
        busy = await asyncio.to_thread(platform.tickets_by_engine)
        if not busy:
            continue
        engine_id = rng.choice(sorted(busy))
        run.kills.append(_kill(platform, engine_id, busy[engine_id], run))
        await asyncio.to_thread(platform.add_engine, MODEL)
        if len(run.kills) % 50 == 0 or plan.name == "real":
            say(f"{plan.name}: {len(run.kills)} kills, {len(run.streams)} requests")


def _kill(platform: LocalPlatform, engine_id: EngineId, tickets: Sequence[str], run: Run) -> Kill:
    hit = [s for s in run.streams if s.error and any(s.name in ticket for ticket in tickets)]
    n_tokens = sum(len(s.question.prompt) + len(s.ids) for s in hit)
    platform.kill_engine(engine_id)
    return Kill(time.monotonic(), tuple(s.name for s in hit), n_tokens)


def _count_wrong_rows(run: Run, database: Path) -> int:
    """Requests without exactly one row, or one that says other than was delivered."""
    query = "select client_request_id, prompt_tokens, completion_tokens from usage"
    with sqlite3.connect(database) as connection:
        rows = connection.execute(query).fetchall()
    found: dict[str, list[tuple[int, int]]] = {}
    for name, prompt_tokens, completion_tokens in rows:
        found.setdefault(name, []).append((prompt_tokens, completion_tokens))
    expected = {s.name: (len(s.question.prompt), len(s.question.answer)) for s in run.streams}
    return sum(found.get(name) != [counts] for name, counts in expected.items())


def judge(plan: Plan, run: Run, n_rows_wrong: int) -> dict[str, Figure]:
    """What is promised, and what came of it."""
    pauses = sorted(_pauses(run))
    p50, p99 = quantiles([p for p, _ in pauses], n=100)[49:99:49]
    wrong = sum(
        sum(a != b for a, b in zip(s.ids, s.question.answer, strict=False))
        + abs(len(s.ids) - len(s.question.answer))
        for s in run.streams
        if not s.error
    )
    found = {
        "kills": Figure(len(run.kills)),
        "requests": Figure(len(run.streams)),
        "requests_moved": Figure(len(pauses)),
        "failed_requests": Figure(sum(bool(s.error) for s in run.streams), "<= 0"),
        "wrong_tokens": Figure(wrong, "<= 0"),
        "wrong_usage_rows": Figure(n_rows_wrong, "<= 0"),
        "pause_p50_ms": Figure(1000 * p50),
        "pause_p99_ms": Figure(1000 * p99, "<= 500" if plan.name == "echo" else ""),
    }
    if plan.name == "real":
        shares = [pause / bound for pause, bound in pauses]
        found["pause_by_bound_p99"] = Figure(quantiles(shares, n=100)[-1], "<= 1")
        found["pause_by_bound_max"] = Figure(max(shares))
    for stream in run.streams:
        if stream.error:
            say(f"{plan.name}: request {stream.name}: {stream.error}")
    return found


def _pauses(run: Run) -> Iterator[tuple[float, float]]:
    """Each pause, and the longest that it may be: detection, and all that moved computed twice."""
    streams = {stream.name: stream for stream in run.streams}
    for kill in run.kills:
        bound_s = _DETECTION_S + 2 * kill.n_tokens / run.prefill_tokens_per_s
        for name in kill.streams:
            times_s = streams[name].times_s
            before = [t for t in times_s if t <= kill.at_s]
            after = [t for t in times_s if t > kill.at_s]
            if before and after:
                yield after[0] - before[-1], bound_s


if __name__ == "__main__":
    sys.exit(main())
