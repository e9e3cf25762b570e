"""Many adapters on one engine: what they cost, whom they starve, and what peers do with them.

    python -m bench.adapters                      all of it, an hour or more
    python -m bench.adapters --quick              less of each, some minutes
    python -m bench.adapters --only curve         one part of: curve, probe, peers, echo, floor

On the embedded model, this platform running whole with real keys, 10,000 adapters registered by
one line (ranks 8 to 64 in turn, q and v):

  - curve: 0, 1, 10, 100, 1,000 of them asked for by 16 clients. First use, where most adapters are
    fetched, checked and loaded, then rounds of use, in turn. With more clients than run at once
    (--clients 24) requests wait, and their adapters load meanwhile.
  - probe: what a cold adapter's request waits, beside a light load of others.
  - peers: the same trace on vLLM's own server and on Ray Serve LLM (`bench.adapter_systems`), each
    in turn with ours in one run.

On echo engines, in this process (`bench.adapter_echo`): loads and balance by way of routing, and a
tenant of 200 adapters beside one of 2.

Hit rates and times of loading are the platform's own, from `/ready`. Tables and figures are printed
as each part ends, also of what was measured before it was cut off; the last line has all figures.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from bench.adapter_curve import report_curve, report_probe
from bench.adapter_echo import report_floor, report_routing
from bench.adapter_peers import report_peers
from bench.adapter_systems import (
    DYNAMIC,
    N_REGISTERED,
    OURS,
    RAY,
    STATIC,
    Contender,
    Scale,
    contender,
)
from bench.peers import PeerMissingError
from bench.report import Figure, describe_run, print_figures, say
from bench.systems import NotRunningError
from serve_app.embedded_model import prepare_embedded_model
from tests.support.adapters import make_family

PARTS = ("curve", "probe", "peers", "echo", "floor")
_N_CONTENTS = 32


_FULL = Scale((0, 1, 10, 100, 1000), 320, 40, 3, 240)
_QUICK = Scale((0, 10, 100), 64, 8, 2, 32, is_quick=True)
Figures = dict[str, Figure]


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scale = _scale_of(options)
    parts = options.only.split(",")
    figures: Figures = {}
    print(describe_run(f"python -m bench.adapters {' '.join(sys.argv[1:])}".strip()), flush=True)
    try:
        if {"curve", "probe", "peers"} & set(parts):
            _run_real(options, scale, parts, figures)
        if "echo" in parts:
            report_routing(100 if scale.is_quick else 300, options.engines, figures)
        if "floor" in parts:
            figures |= report_floor(length_s=15.0 if scale.is_quick else 60.0)
    except (NotRunningError, PeerMissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        # Also when it is cut off: what has been measured counts.
        print_figures("adapters", figures, is_quick=scale.is_quick)
    return 0


def _scale_of(options: argparse.Namespace) -> Scale:
    scale = replace(_QUICK if options.quick else _FULL, alpha=options.alpha, seed=options.seed)
    if options.requests is not None:
        scale = replace(scale, n_requests=options.requests, peer_requests=options.requests)
    if options.used is not None:
        scale = replace(scale, used=options.used)
    if options.clients is not None:
        scale = replace(scale, clients=options.clients)
    if options.rounds is not None:
        scale = replace(scale, rounds=options.rounds)
    return scale


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of each")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--seed", type=int, default=1, help="of traces")
    parser.add_argument("--alpha", type=float, default=0.3, help="of popularity; 1 is uniform")
    parser.add_argument("--requests", type=int, help="of each line of curve and peers")
    parser.add_argument("--used", type=_numbers, help="adapters in use, the lines of curve")
    parser.add_argument("--clients", type=int, help="of curve: 16, as many as run at once")
    parser.add_argument(
        "--rounds", type=int, help="of peers, the first is first use; of curve's use"
    )
    parser.add_argument("--threads", type=int, help="compute threads; without it, all defaults")
    parser.add_argument("--engines", type=_numbers, default=(2, 4), help="of echo, how many")
    parser.add_argument(
        "--systems",
        default=f"{OURS},{STATIC},{DYNAMIC},{RAY}",
        help="for peers; each is in memory beside ours alone",
    )
    return parser.parse_args()


def _run_real(
    options: argparse.Namespace, scale: Scale, parts: Sequence[str], figures: Figures
) -> None:
    model = prepare_embedded_model(progress=say)
    with tempfile.TemporaryDirectory(prefix="arb-") as folder:
        family = Path(folder) / "family"
        say(f"writing {N_REGISTERED} adapters")
        names = make_family(family, model, N_REGISTERED, n_contents=_N_CONTENTS, are_different=True)

        def starts(key: str, told: slice) -> AbstractContextManager[Contender]:
            return contender(key, model, family, names, told, options.threads)

        if {"curve", "probe"} & set(parts):
            with starts(OURS, slice(0)) as ours:
                _measure_ours(ours, scale, parts, figures)
        if "peers" in parts:
            report_peers(starts, options.systems.split(","), scale, figures)


def _measure_ours(ours: Contender, scale: Scale, parts: Sequence[str], figures: Figures) -> None:
    if "curve" in parts:
        report_curve(ours, scale, figures)
        print_figures("adapters", figures, is_quick=scale.is_quick)
    if "probe" in parts:
        report_probe(ours, scale, figures)
        print_figures("adapters", figures, is_quick=scale.is_quick)


if __name__ == "__main__":
    sys.exit(main())
