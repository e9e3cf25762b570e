"""Many adapters on one engine: what they cost, whom they starve, and what peers do with them.

    python -m bench.adapters                      all of it, some 20 minutes
    python -m bench.adapters --quick              less of each, 3 minutes
    python -m bench.adapters --only curve         one part of: curve, probe, peers, echo, floor

On the embedded model, this platform running whole with real keys, 10,000 adapters registered by
one line (ranks 8 to 64 in turn, q and v):

  - curve: 0, 1, 10, 100, 1,000 of them asked for by 16 clients. Each trace runs twice with other
    prompts: first use, where most adapters are fetched, checked and loaded, then use.
  - probe: what a cold adapter's request waits, beside a light load of others.
  - peers: the same trace on vLLM's own server and on Ray Serve LLM (`bench.adapter_systems`), which
    take turns in one run.

On echo engines, in this process (`bench.adapter_echo`): loads and balance by way of routing, and a
tenant of 200 adapters beside one of 2.

Hit rates and times of loading are the platform's own, from `/ready`.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.adapter_curve import report_curve, report_probe
from bench.adapter_echo import report_floor, report_routing
from bench.adapter_peers import N_ADAPTERS, report_peers
from bench.adapter_systems import (
    DYNAMIC,
    N_REGISTERED,
    OURS,
    RAY,
    STATIC,
    Contender,
    Scale,
    contenders,
)
from bench.measure import running
from bench.peers import PeerMissingError
from bench.report import Figure, describe_run, print_figures, say
from bench.systems import NotRunningError
from serve_app.embedded_model import prepare_embedded_model
from tests.support.adapters import make_family

PARTS = ("curve", "probe", "peers", "echo", "floor")
_N_CONTENTS = 32


_FULL = Scale((0, 1, 10, 100, 1000), 320, 40, 3, 240)
_QUICK = Scale((0, 10, 100), 64, 8, 2, 32)
Figures = dict[str, Figure]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scale = _QUICK if options.quick else _FULL
    scale = replace(scale, alpha=options.alpha, seed=options.seed)
    if options.requests is not None:
        scale = replace(scale, n_requests=options.requests, peer_requests=options.requests)
    parts = options.only.split(",")
    figures: Figures = {}
    print(describe_run(f"python -m bench.adapters {' '.join(sys.argv[1:])}".strip()))
    try:
        if {"curve", "probe", "peers"} & set(parts):
            figures |= _run_real(options, scale, parts)
        if "echo" in parts:
            figures |= _report_echo(is_quick=options.quick)
        if "floor" in parts:
            figures |= report_floor(length_s=15.0 if options.quick else 60.0)
    except (NotRunningError, PeerMissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_figures("adapters", figures, is_quick=options.quick)
    return 0


def _report_echo(*, is_quick: bool) -> Figures:
    return report_routing(100, (2,)) if is_quick else report_routing(300)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of each")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--seed", type=int, default=1, help="of traces")
    parser.add_argument("--alpha", type=float, default=0.3, help="of popularity; 1 is uniform")
    parser.add_argument("--requests", type=int, help="of each line of curve and peers")
    parser.add_argument("--threads", type=int, help="compute threads; without it, all defaults")
    parser.add_argument(
        "--systems",
        default=f"{OURS},{STATIC},{DYNAMIC},{RAY}",
        help="for peers; all that are named are in memory at once",
    )
    return parser.parse_args()


def _run_real(options: argparse.Namespace, scale: Scale, parts: Sequence[str]) -> Figures:
    model = prepare_embedded_model(progress=say)
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="arb-") as folder:
        family = Path(folder) / "family"
        say(f"writing {N_REGISTERED} adapters")
        names = make_family(family, model, N_REGISTERED, n_contents=_N_CONTENTS, are_different=True)
        if {"curve", "probe"} & set(parts):
            with (
                contenders([OURS], model, family, names, 0, options.threads) as made,
                running({OURS: made[OURS].system}),
            ):
                figures |= _measure_ours(made[OURS], scale, parts)
        if "peers" in parts:
            keys = options.systems.split(",")
            with (
                contenders(keys, model, family, names, N_ADAPTERS, options.threads) as made,
                running({key: contender.system for key, contender in made.items()}),
            ):
                figures |= report_peers(made, scale)
    return figures


def _measure_ours(ours: Contender, scale: Scale, parts: Sequence[str]) -> Figures:
    figures: Figures = {}
    if "curve" in parts:
        figures |= report_curve(ours, scale)
    if "probe" in parts:
        figures |= report_probe(ours, scale)
    return figures


if __name__ == "__main__":
    sys.exit(main())
