"""The same requests for adapters on this platform, on vLLM's own server and on Ray Serve LLM.

What a peer answers with an error counts as failed and into nothing else; of ours none may.

Ours stays; each peer in turn starts, takes turns with ours on the same traces, and ends, so that
two are in memory at most. Each peer has a hundred adapters of its own, which are as new to ours.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from bench.adapter_load import Draw, Run, draw_trace
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
from bench.report import Figure, Spread, print_figures, print_table, say

N_ADAPTERS = 100
Figures = dict[str, Figure]
Starts = Callable[[str, slice], AbstractContextManager[Contender]]
"""Starts one server, told of these adapters, and ends it."""
_HEAD = (
    "system",
    "first use, tokens/s",
    "use",
    "TTFT p50, p99, ms",
    "use",
    "ITL p99, ms",
    "failed",
)


def report_peers(starts: Starts, keys: Sequence[str], scale: Scale, figures: Figures) -> None:
    """Measures peers beside ours; figures of each are there when it has ended.

    Args:
        starts: Starts one of them.
        keys: Of all that take part, ours included.
        scale: How much.
        figures: Are added to.
    """
    peers = [key for key in keys if key != OURS]
    with starts(OURS, slice(0)) as ours:
        for i, key in enumerate(peers):
            told = slice(i * N_ADAPTERS, (i + 1) * N_ADAPTERS)
            with starts(key, told) as peer:
                _report_peer({OURS: ours, key: peer}, told, scale, figures)
            print_figures("adapters", figures, is_quick=scale.is_quick)


def _report_peer(made: dict[str, Contender], told: slice, scale: Scale, figures: Figures) -> None:
    runs: dict[str, list[Run]] = {key: [] for key in made}
    telling_s = dict.fromkeys(made, 0.0)
    order = list(made)
    try:
        for number in range(scale.rounds):
            trace = _draw(told, number, scale)
            for key in order[:: 1 if number % 2 == 0 else -1]:
                made[key].system.processes.resume()
                began_s = time.monotonic()
                made[key].introduce([draw.adapter for draw in trace if draw.adapter is not None])
                telling_s[key] += time.monotonic() - began_s
                run = send(made[key], trace, may_fail=key != OURS)
                runs[key].append(run)
                ttft = milliseconds(run.ttfts_s())
                say(f"round {number + 1}: {key} {run.tokens_per_s:.0f} tokens/s, TTFT {ttft}")
    finally:
        rows = [
            [made[key].system.name, *_describe(found), f"{telling_s[key]:.1f}"]
            for key, found in runs.items()
            if found
        ]
        print_table(f"{N_ADAPTERS} adapters, {CLIENTS} clients", [*_HEAD, "told in, s"], rows)
    (peer,) = made.keys() - {OURS}
    figures |= _compare(peer, runs[OURS], runs[peer])


def _draw(told: slice, number: int, scale: Scale) -> list[Draw]:
    seed = f"{scale.seed}-peers-{number}"
    trace = draw_trace(N_ADAPTERS, scale.peer_requests, scale.alpha, seed, LENGTHS)
    return [replace(draw, adapter=told.start + (draw.adapter or 0)) for draw in trace]


def _describe(found: Sequence[Run]) -> list[str]:
    used = found[1:] or found
    return [
        f"{found[0].tokens_per_s:.0f}",
        Spread.of(run.tokens_per_s for run in used).text(0),
        milliseconds(found[0].ttfts_s()),
        milliseconds([s for run in used for s in run.ttfts_s()]),
        f"{1000 * Spread.of(run.itl_p99_s for run in used).mid:.0f}",
        f"{sum(len(run.errors) for run in found)} of {sum(len(run.answers) for run in found)}",
    ]


def _compare(key: str, ours: Sequence[Run], theirs: Sequence[Run]) -> Figures:
    pairs = list(zip(ours, theirs, strict=True))
    used = pairs[1:] or pairs
    rate = Spread.of(a.tokens_per_s / b.tokens_per_s for a, b in used).mid
    ttft = Spread.of(
        percentiles(a.ttfts_s())["p50"] / percentiles(b.ttfts_s())["p50"] for a, b in used
    ).mid
    first = pairs[0][0].tokens_per_s / pairs[0][1].tokens_per_s
    return {
        f"tokens_per_s_beside_{key}": Figure(rate, "> 1"),
        f"ttft_p50_beside_{key}": Figure(ttft, "< 1"),
        f"tokens_per_s_beside_{key}, first use": Figure(first),
    }
