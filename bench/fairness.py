"""Is the running platform fair? Over HTTP, with real keys, against what it is compared with.

    python -m bench.fairness                    workloads under every policy, and all checks
    python -m bench.fairness --quick            three workloads, VTC and FCFS, four checks
    python -m bench.fairness --only isolation   one workload or check, or several
    python -m bench.fairness --engine vllm      on the real small model, with lengths an eighth

The paper's workloads go to gateways, router and engine as they serve; only the engine is a model,
`EchoEngine` with the steps of the paper's (Llama-2-7B on an A10G), so many times as fast. Rates
are scaled by the capacity that is measured first, and so are the times that are shown: they are
the paper's seconds. Arrivals are open-loop.

A cap on requests a minute is compared in `bench.simulate` only: minutes cannot be made shorter.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.fair_checks import CHECKS, HONEST, N_KEYS, WEIGHTS, Scene
from bench.fair_platform import (
    PAIR,
    THREE,
    FairPlatform,
    Keys,
    describe_adapted,
    describe_echo,
    describe_pair,
    describe_vllm,
    make_keys,
    write_adapters,
)
from bench.fair_runs import Target, measure_capacity, send
from bench.report import describe_run, say
from bench.sim_engine import EngineModel
from bench.simulate import TAIL_S, Figures, Result, judge, print_table, summarise
from bench.simulation import Run
from bench.systems import MODEL_NAME, NotRunningError
from bench.workloads import REFERENCE_RPS, WORKLOADS, Workload
from serve_app.embedded_model import prepare_embedded_model
from serve_app.names import TenantId

POLICIES = ("vtc", "fcfs", "lcf", "round_robin")
_QUICK_POLICIES = ("vtc", "fcfs")
_QUICK = ("overload", "on/off less", "arena-like", "cheats", "away", "isolation", "ingress")
_PLOTTED = ("overload", "on/off less", "weighted")
_QUICK_S = 240.0
_CAPACITY_REQUESTS = 160
_VLLM_LENGTH = 1 / 8


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    prepare_embedded_model(progress=say)
    chosen = options.only or (_QUICK if options.quick else [*(w.name for w in WORKLOADS), *CHECKS])
    keys = _make_keys()
    folder = Path(tempfile.mkdtemp(prefix="arriero-bench-"))
    platform = _make_platform(options, keys, chosen, folder)
    try:
        platform.start()
        figures = _run(platform, keys, chosen, options)
    except NotRunningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        platform.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"bench": "fairness", "quick": options.quick, "figures": figures}))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer, and a shorter time of each")
    names = [*(workload.name for workload in WORKLOADS), *CHECKS]
    parser.add_argument("--only", type=_names_of(names), help=f"of {', '.join(names)}")
    parser.add_argument("--policies", type=_names_of(POLICIES), help=f"of {', '.join(POLICIES)}")
    parser.add_argument("--engine", choices=("echo", "vllm"), default="echo")
    parser.add_argument("--speed", type=float, default=10.0, help="of the echo engine; paper's: 1")
    parser.add_argument("--chunk", type=int, help="`prompt_chunk_tokens` of the first model")
    parser.add_argument("--seconds", type=float, help="the paper's, for each workload")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plots", type=Path, default=Path(__file__).parent / "plots")
    return parser.parse_args()


def _names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Returns a reader of names with commas between them."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return read


def _make_keys() -> Keys:
    """Makes tenants of its own for each run: what one got in another run counts for its turn."""
    n_keys, weights = dict(N_KEYS), dict(WEIGHTS)
    for workload in WORKLOADS:
        for policy in POLICIES:
            for tenant in _tenants_of(workload):
                name = _name_for(tenant, workload, policy)
                n_keys[name] = 1
                weights[name] = workload.weights.get(tenant, 1.0)
    return make_keys(n_keys, weights)


def _tenants_of(workload: Workload) -> set[TenantId]:
    requests = workload.make(workload.duration_s, random.Random(0), 1.0)
    return {request.tenant for request in requests} | set(workload.light)


def _name_for(tenant: TenantId, workload: Workload, policy: str) -> TenantId:
    return TenantId(f"{policy}-{workload.name.replace('/', '-').replace(' ', '-')}-{tenant}")


def _make_platform(
    options: argparse.Namespace, keys: Keys, chosen: Sequence[str], folder: Path
) -> FairPlatform:
    engine = EngineModel()
    is_echo = options.engine == "echo"
    models = [
        describe_echo(engine, options.speed, 1, options.chunk) if is_echo else describe_vllm()
    ]
    if "engines" in chosen and is_echo:
        models.append(describe_echo(engine, options.speed, 3))
    if "pinned" in chosen and is_echo:
        models += describe_pair(engine, options.speed)
    n_gateways = 4 if {"gateways", "engines"} & set(chosen) else 2
    platform = FairPlatform(models, keys, n_gateways)
    if "adapters" in chosen and is_echo:
        models.append(describe_adapted(engine, options.speed))
        platform = FairPlatform(models, keys, n_gateways, adapters=folder / "adapters")
    return platform


def _run(
    platform: FairPlatform, keys: Keys, chosen: Sequence[str], options: argparse.Namespace
) -> Figures:
    target = _aim(platform, keys, MODEL_NAME, options)
    workloads = [_shorten(w, options) for w in WORKLOADS if w.name in chosen]
    policies = options.policies or (_QUICK_POLICIES if options.quick else POLICIES)
    results: dict[str, dict[str, Result]] = {workload.name: {} for workload in workloads}
    runs: dict[str, dict[str, Run]] = {workload.name: {} for workload in workloads}
    scene = Scene(target, None, None, None, platform.wait_until_idle, options.seed)
    for policy in policies if workloads else ("vtc",):
        platform.set_policy(policy)
        here = replace(target, gateways=platform.gateways)
        for workload in workloads:
            platform.wait_until_idle()
            keys_here = {
                t: keys.texts[_name_for(t, workload, policy)] for t in _tenants_of(workload)
            }
            result, run = _run_workload(workload, replace(here, keys=keys_here), options.seed)
            results[workload.name][policy], runs[workload.name][policy] = result, run
            say(f"{policy:11} {workload.name:15} D {result.d_max:.3f}, gap {result.gap_ratio:.3f}")
        if policy == "vtc":
            _check(platform, keys, chosen, options, scene)
    _report(workloads, results, runs, options)
    return judge(results, "vtc", "vtc") | scene.figures


def _aim(platform: FairPlatform, keys: Keys, model: str, options: argparse.Namespace) -> Target:
    """Measures what an engine can do, and scales time by it."""
    length = 1.0 if options.engine == "echo" else _VLLM_LENGTH
    n_engines = 3 if model == THREE else 1
    target = Target(platform.gateways, model, keys.texts, 1.0, length, n_engines)
    rps = measure_capacity(target, HONEST, (256, 256), _CAPACITY_REQUESTS)
    say(f"{model}: capacity {rps:.2f} requests/s of 256/256 x {length:g}")
    return replace(target, speed=rps / REFERENCE_RPS)


def _shorten(workload: Workload, options: argparse.Namespace) -> Workload:
    longest_s = options.seconds or (_QUICK_S if options.quick else workload.duration_s)
    return replace(workload, duration_s=min(workload.duration_s, longest_s))


def _run_workload(workload: Workload, target: Target, seed: int) -> tuple[Result, Run]:
    started_s = time.perf_counter()
    until_s = workload.duration_s + TAIL_S
    requests = workload.make(until_s, random.Random(seed), 1.0)
    # One gateway, as in the paper; what several do to it is a check of its own.
    target = replace(target, gateways=target.gateways[:1])
    run = send(target, requests, until_s, weights=workload.weights, seed=seed)
    bound = target.bound([job.request for job in run.jobs], workload.weights)
    wall_s = time.perf_counter() - started_s
    return summarise(run, workload, target.capacity, bound, wall_s), run


def _check(
    platform: FairPlatform,
    keys: Keys,
    chosen: Sequence[str],
    options: argparse.Namespace,
    scene: Scene,
) -> None:
    if "engines" in chosen and options.engine == "echo":
        scene.three = _aim(platform, keys, THREE, options)
    if "pinned" in chosen and options.engine == "echo":
        scene.pair = replace(scene.one, n_engines=2, models={name: name for name in PAIR})
    if platform.adapters is not None:
        names = write_adapters(platform.adapters)
        scene.adapted = replace(scene.one, models={name: name for name in names})
    for name, check in CHECKS.items():
        if name in chosen:
            check(scene)


def _report(
    workloads: Sequence[Workload],
    results: Mapping[str, Mapping[str, Result]],
    runs: Mapping[str, Mapping[str, Run]],
    options: argparse.Namespace,
) -> None:
    print(describe_run("make bench-fairness" + _show_arguments()))
    for workload in workloads:
        print_table(workload, results[workload.name])
        shown = {p: run for p, run in runs[workload.name].items() if p in _QUICK_POLICIES}
        if workload.name in _PLOTTED and len(shown) > 1 and options.engine == "echo":
            from bench.sim_plots import draw

            print(f"  {draw(workload, shown, options.plots, 'fairness').name}")


def _show_arguments() -> str:
    words = " ".join(sys.argv[1:])
    return f" ARGS='{words}'" if words else ""


if __name__ == "__main__":
    sys.exit(main())
