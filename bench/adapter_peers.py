"""The same requests for adapters on this platform, on vLLM's own server and on Ray Serve LLM."""

import time
from collections.abc import Mapping, Sequence

from bench.adapter_load import Run, draw_trace
from bench.adapter_systems import (
    CLIENTS,
    LENGTHS,
    OURS,
    Contender,
    Scale,
    milliseconds,
    send,
)
from bench.load import percentiles
from bench.report import Figure, Spread, print_table, say

N_ADAPTERS = 100
Figures = dict[str, Figure]


def report_peers(made: Mapping[str, Contender], scale: Scale) -> Figures:
    runs: dict[str, list[Run]] = {key: [] for key in made}
    telling_s = dict.fromkeys(made, 0.0)
    order = list(made)
    for number in range(scale.rounds):
        trace = draw_trace(
            N_ADAPTERS,
            scale.peer_requests,
            scale.alpha,
            f"{scale.seed}-peers-{number}",
            LENGTHS,
        )
        turn = number % len(order)
        for key in order[turn:] + order[:turn]:
            made[key].system.processes.resume()
            began_s = time.monotonic()
            made[key].introduce([draw.adapter for draw in trace if draw.adapter is not None])
            telling_s[key] += time.monotonic() - began_s
            run = send(made[key], trace)
            runs[key].append(run)
            ttft = milliseconds(run.ttfts_s())
            say(f"round {number + 1}: {key} {run.tokens_per_s:.0f} tokens/s, TTFT {ttft}")
    rows = []
    for key, found in runs.items():
        used = found[1:] or found
        rows.append(
            [
                made[key].system.name,
                f"{found[0].tokens_per_s:.0f}",
                Spread.of(run.tokens_per_s for run in used).text(0),
                milliseconds(found[0].ttfts_s()),
                milliseconds([s for run in used for s in run.ttfts_s()]),
                f"{1000 * Spread.of(run.itl_p99_s for run in used).mid:.0f}",
                f"{telling_s[key]:.1f}",
            ]
        )
    head = ["system", "first use, tokens/s", "use", "TTFT p50, p99, ms", "use", "ITL p99, ms"]
    print_table(f"{N_ADAPTERS} adapters, {CLIENTS} clients", [*head, "told in, s"], rows)
    return _compare(runs) if OURS in runs else {}


def _compare(runs: Mapping[str, Sequence[Run]]) -> Figures:
    figures: Figures = {}
    for key in runs.keys() - {OURS}:
        pairs = list(zip(runs[OURS], runs[key], strict=True))
        used = pairs[1:] or pairs
        rate = Spread.of(a.tokens_per_s / b.tokens_per_s for a, b in used).mid
        ttft = Spread.of(
            percentiles(a.ttfts_s())["p50"] / percentiles(b.ttfts_s())["p50"] for a, b in used
        ).mid
        figures[f"tokens_per_s_beside_{key}"] = Figure(rate, "> 1")
        figures[f"ttft_p50_beside_{key}"] = Figure(ttft, "< 1")
        first = pairs[0][0].tokens_per_s / pairs[0][1].tokens_per_s
        figures[f"tokens_per_s_beside_{key}, first use"] = Figure(first)
    return figures
