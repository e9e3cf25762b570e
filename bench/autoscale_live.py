"""The same comparison on a real Ray: our scaling and Ray Serve's own, one after the other.

Echo engines of four places, so that a machine with two cores holds several: a step and a ramp of
open-loop requests over HTTP. Ours is the whole platform; Serve's is a deployment of its own that
paces and streams alike and takes as long to start as ours was seen to (`bench.scale_rival`). All
of it is faster than in life, so the delays that can be set are shorter, on both sides; and Serve's
as it is by default.

An engine costs from when Serve lists its replica until it does so no more.
"""

import asyncio
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.arriero_system import ARRIERO_ROLES, arriero_application, describe_model
from bench.load import completion_ask, draw_prompt
from bench.open_load import OpenLoad, Shot, run_open
from bench.ray_served import RayServed
from bench.replica_watch import (
    ReplicaLook,
    Replicas,
    Sample,
    find_starts_s,
    running_of,
    sum_engine_s,
)
from bench.report import Figure, describe_run, print_table, say
from bench.sampler import Sampler
from bench.scale_rival import DEPLOYMENT
from bench.systems import MODEL_NAME, NotRunningError, wait_ready
from serve_app.deployment_names import engine_of
from serve_app.names import ModelName

TTFT_S = 2.0
_SEATS, _STEP_S = 4, 0.1
_PROMPT, _OUTPUT = 16, 40
_RPS_EACH = _SEATS / (_OUTPUT * _STEP_S)
"""Requests a second that fill one engine."""
_MOST = 4
_DOWN_S = 15.0
_TRACE_S, _QUICK_TRACE_S = 180.0, 75.0
_AFTER_S = 15.0
_ALONE_S = 90.0
"""How long the engines of one trace may take to leave before the next."""
_LOOK_S = 0.5
_EQUAL = 0.01
"""Shares in time that differ by no more are equal: of some hundred requests it is one or two."""
_OWN_PROCESSES = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_num_workers_soft_limit": "0",
}
"""Keeps Ray from having processes ready: then each replica starts one, on both sides."""


def step(part: float) -> float:
    """Demand in engines' worth, by how much of the trace is over."""
    return 2.5 if 0.33 <= part < 0.72 else 0.6


def ramp(part: float) -> float:
    """The same, without a jump."""
    return 0.5 + 2.5 * max(1.0 - abs(part - 0.5) / 0.45, 0.0)


TRACES: dict[str, Callable[[float], float]] = {"step": step, "ramp": ramp}


@dataclass(frozen=True)
class Served:
    """What one system came to on one trace."""

    system: str
    trace: str
    attainment: float
    engine_s: float
    most_ready: int
    starts_s: tuple[float, ...]
    n_requests: int
    n_errors: int
    n_late_clients: int


def run_live(*, is_quick: bool, trace_s: float | None = None) -> dict[str, Figure]:
    """Measures both, prints a table, returns the figures; quick is shorter and with one rival."""
    trace_s = trace_s or (_QUICK_TRACE_S if is_quick else _TRACE_S)
    ours = RayServed("Arriero", [describe_ours()], _OWN_PROCESSES, ARRIERO_ROLES)
    found = _run("ours", ours, engine_of(ModelName(MODEL_NAME)), trace_s)
    start_s = _median_start_s(found)
    say(f"an engine of ours started in {start_s:.1f} s; the others' do so, too")
    for name, autoscaling in list(RIVALS.items())[: 1 if is_quick else None]:
        found += _run(name, _rival(name, autoscaling, start_s), DEPLOYMENT, trace_s)
    print(describe_run("make bench-autoscale ARGS='" + " ".join(sys.argv[1:]) + "'"))
    _print(found, trace_s)
    return judge_costs(found) | {"start_s": Figure(start_s)}


def _median_start_s(found: Sequence[Served]) -> float:
    starts_s = [start_s for r in found for start_s in r.starts_s]
    return median(starts_s) if starts_s else 0.0


def _print(found: Sequence[Served], trace_s: float) -> None:
    print_table(
        f"Scaling on a real Ray, traces of {trace_s:.0f} s",
        [
            "system, trace", "in time", "engine-seconds", "most ready", "a start, s", "requests",
            "errors", "late clients",
        ],
        [
            [
                f"{r.system}, {r.trace}",
                f"{r.attainment:.4f}",
                f"{r.engine_s:.0f}",
                str(r.most_ready),
                f"{_median_start_s([r]):.1f}",
                str(r.n_requests),
                str(r.n_errors),
                str(r.n_late_clients),
            ]
            for r in found
        ],
    )  # fmt: skip


_BOUNDS = {"min_replicas": 1, "max_replicas": _MOST}
_QUICK = {
    "upscale_delay_s": 0.0,
    "downscale_delay_s": _DOWN_S,
    "look_back_period_s": 5.0,
    "metrics_interval_s": 1.0,
}
RIVALS: dict[str, dict[str, Any]] = {
    "serve-3": {**_BOUNDS, **_QUICK, "target_ongoing_requests": 3},
    "serve": _BOUNDS,
}
"""Serve's policy, quick and at three requests a replica of four places, and as it is by default:
two requests, 30 s up, 600 s down."""


def describe_ours() -> dict[str, Any]:
    """Returns our side as a Serve application."""
    engine = {"kind": "echo", "max_num_seqs": _SEATS, "batch": {"step_s": _STEP_S}}
    model = describe_model(MODEL_NAME, engine) | {
        "accelerator": {"kind": "cpu", "cpus": 0.1},
        "replicas": {"min": 1, "max": _MOST},
        "autoscaling": {"ttft_target_s": TTFT_S, "scale_down_after_s": _DOWN_S},
    }
    return arriero_application([model])


def _rival(name: str, autoscaling: dict[str, Any], start_s: float) -> RayServed:
    application = {
        "name": "rival",
        "import_path": "bench.scale_rival:build",
        "route_prefix": "/",
        "args": {
            "step_s": _STEP_S,
            "start_s": start_s,
            "seats": _SEATS,
            "autoscaling": autoscaling,
        },
    }
    # What `make up` changes for this platform is Serve's own default again.
    plain = _OWN_PROCESSES | {
        "RAY_SERVE_ENABLE_HA_PROXY": "0",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1",
    }
    return RayServed(name, [application], plain, ())


def _run(name: str, served: RayServed, deployment: str, trace_s: float) -> list[Served]:
    """Plays all traces."""
    results = []
    try:
        served.start()
        say(f"{name}: ready after {wait_ready(served):.0f} s")
        for trace, level in TRACES.items():
            shots = draw_shots(level, served.base_url, trace_s)
            with Sampler(ReplicaLook(served, deployment), _LOOK_S) as replicas:
                _wait_for_one(replicas)
                say(f"{name}: the {trace} begins, {len(shots)} requests in {trace_s:.0f} s")
                load = asyncio.run(run_open(shots, trace_s + _AFTER_S))
            results.append(judge(name, trace, load, replicas.samples, trace_s))
            say(f"{results[-1]}")
            for error in sorted({error[:200] for error in load.errors})[:3]:
                say(f"  error: {error}")
    finally:
        served.stop()
    return results


def _wait_for_one(replicas: Sampler[Replicas]) -> None:
    """Each trace begins with one engine, or says that others would not leave.

    Raises:
        NotRunningError: None serves.
    """
    until_s = time.monotonic() + _ALONE_S
    while not replicas.samples or list(replicas.samples[-1][1].values()) != ["RUNNING"]:
        if time.monotonic() > until_s:
            seen = replicas.samples[-1][1] if replicas.samples else {}
            if not running_of(seen):
                raise NotRunningError(f"no engine serves after {_ALONE_S:.0f} s: {dict(seen)}")
            say(f"  not one engine after {_ALONE_S:.0f} s, but {len(seen)}; it begins so")
            return
        time.sleep(_LOOK_S)


def draw_shots(
    level: Callable[[float], float], url: str, trace_s: float, seed: int = 1
) -> list[Shot]:
    """Returns requests of a Poisson process with this course."""
    rng, shots, at_s = random.Random(seed), [], 0.0
    top = max(level(i / 100) for i in range(100)) * _RPS_EACH
    while (at_s := at_s + rng.expovariate(top)) < trace_s:
        if rng.random() * top < level(at_s / trace_s) * _RPS_EACH:
            ask = completion_ask(MODEL_NAME, draw_prompt(_PROMPT, rng), _OUTPUT)
            shots.append(Shot(at_s, url, ask))
    return shots


def judge(
    system: str, trace: str, load: OpenLoad, samples: Sequence[Sample], trace_s: float
) -> Served:
    """Returns what a load met. Whoever got no first token in time counts, errors too."""
    in_time = [a for a in load.answers if a.arrivals_s and not a.error and a.ttft_s <= TTFT_S]
    return Served(
        system,
        trace,
        len(in_time) / len(load.answers),
        sum_engine_s(samples, load.started_s, load.started_s + trace_s),
        max(len(running_of(replicas)) for _, replicas in samples),
        tuple(find_starts_s(samples)),
        len(load.answers),
        len(load.errors),
        load.n_late,
    )


def judge_costs(found: Sequence[Served]) -> dict[str, Figure]:
    """Returns what each came to, and our engine-seconds over each rival's."""
    figures = {}
    ours = {r.trace: r for r in found if r.system == "ours"}
    for r in found:
        stem = f"{r.system}_{r.trace}"
        figures[f"{stem}_in_time"] = Figure(r.attainment)
        figures[f"{stem}_engine_s"] = Figure(r.engine_s)
        if r.system != "ours":
            mine = ours[r.trace]
            target = _target(mine.attainment - r.attainment)
            figures[f"{r.trace}_cost_over_{r.system}"] = Figure(mine.engine_s / r.engine_s, target)
    return figures


def _target(better_by: float) -> str:
    """As many in time for less, or more in time for as much; who has fewer is not comparable."""
    if better_by < -_EQUAL:
        return ""
    return "<= 1" if better_by > _EQUAL else "<= 0.8"
