"""What the platform's own path costs, without a model: the gateway before an engine that echoes.

    python -m bench.gateway [--quick]

Requests go through everything that a request goes through in service: HAProxy, gateway (chat
template, tokenizer, vLLM's front end), router, engine replica, and back. Only the model is
missing: `EchoEngine` answers at once, so a client's whole latency is what the platform adds.
Beside it stands LiteLLM's proxy (one worker) before a fake OpenAI server that answers at once; what
it adds is the latency through it less the latency of the fake asked directly. LiteLLM forwards text
and neither renders nor tokenizes.

Requests per second *per core* are requests per CPU second of the processes on the path: for this
platform gateway, HAProxy and router, for LiteLLM its one process. Engine and fake do not count.
"""

import argparse
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from bench.arriero_system import arriero_echo
from bench.load import chat_asks
from bench.measure import Asks, Measured, measure, running
from bench.peer_systems import LiteLlm
from bench.peers import PeerMissingError, litellm_python
from bench.processes import Role
from bench.report import Figure, Spread, describe_run, print_figures, print_table, say
from bench.systems import MODEL_NAME, NotRunningError, System
from serve_app.embedded_model import prepare_embedded_model

OURS, PEER, DIRECT = "arriero", "litellm", "direct"
_PACED = "echo-paced"
_TOKENS_PER_S = 1000.0
_UNARY_TOKENS = 16
_STREAM_TOKENS = 1000
_MORE_DIRECT = 4
"""The fake is quick; as few requests as the others get would be over too soon to be measured."""
_PATH_ROLES: dict[str, set[Role]] = {
    OURS: {"gateway", "HAProxy", "router"},
    PEER: {"proxy"},
}
_GATEWAY_ROLES: dict[str, set[Role]] = {OURS: {"gateway"}, PEER: {"proxy"}}


@dataclass(frozen=True)
class Cell:
    """One load: unary requests of 16 tokens or streams of 1,000."""

    clients: int
    n_requests: int
    is_stream: bool

    @property
    def title(self) -> str:
        """For people."""
        what = f"streams of {_STREAM_TOKENS}" if self.is_stream else "unary"
        return f"{what}, {self.clients} clients"

    def asks(self, seed: str, model: str) -> Asks:
        """Makes this cell's requests."""
        n_tokens = _STREAM_TOKENS if self.is_stream else _UNARY_TOKENS
        return lambda n: chat_asks(
            model, n_tokens, random.Random(f"{seed}-{n}"), is_stream=self.is_stream
        )


CELLS = (
    Cell(1, 300, is_stream=False),
    Cell(16, 1500, is_stream=False),
    Cell(64, 2000, is_stream=False),
    Cell(1, 4, is_stream=True),
    Cell(8, 16, is_stream=True),
    Cell(32, 64, is_stream=True),
)
QUICK_CELLS = (
    Cell(1, 200, is_stream=False),
    Cell(16, 600, is_stream=False),
    Cell(64, 800, is_stream=False),
    Cell(1, 2, is_stream=True),
    Cell(16, 16, is_stream=True),
)

Results = dict[tuple[Cell, str], list[Measured]]
"""(cell, system) -> one measurement a round."""


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    prepare_embedded_model(progress=say)
    cells = QUICK_CELLS if options.quick else CELLS
    rounds = options.rounds or (1 if options.quick else 3)
    try:
        with running(_make_systems()) as systems:
            results = _run(systems, cells, rounds, options)
    except NotRunningError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _report(results, systems, is_quick=options.quick)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer requests, one round")
    parser.add_argument("--rounds", type=int, help="how often each cell is measured")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    return parser.parse_args()


def _make_systems() -> dict[str, System]:
    try:
        python = litellm_python()
    except PeerMissingError as error:
        say(f"LiteLLM cannot be installed here; going on without it. {error}")
        return {OURS: arriero_echo(_PACED, _TOKENS_PER_S)}
    peer = LiteLlm(python, _TOKENS_PER_S)
    return {OURS: arriero_echo(_PACED, _TOKENS_PER_S), PEER: peer}


def _run(
    systems: dict[str, System], cells: tuple[Cell, ...], rounds: int, options: argparse.Namespace
) -> Results:
    results: Results = defaultdict(list)
    for n in range(rounds):
        for i, cell in enumerate(cells):
            for key, measured in _run_cell(systems, cell, f"{options.seed}-{n}-{i}", n + i):
                results[cell, key].append(measured)
                load = measured.load
                say(
                    f"round {n + 1}/{rounds}  {cell.title:<27} {key:<9}"
                    f"{load.requests_per_s:7.1f} requests/s  {load.tokens_per_s:8.0f} tokens/s  "
                    f"p50 {load.e2e_s['p50'] * 1000:8.2f} ms"
                )
    return results


def _run_cell(
    systems: dict[str, System], cell: Cell, seed: str, turn: int
) -> Iterator[tuple[str, Measured]]:
    order = list(systems)
    turn %= len(order)
    for key in order[turn:] + order[:turn]:
        system = systems[key]
        name = _PACED if cell.is_stream and key == OURS else MODEL_NAME
        urls = {key: system.base_url}
        if isinstance(system, LiteLlm):
            urls[DIRECT] = system.direct_url
        for measured_key, url in urls.items():
            asks = cell.asks(seed, name)
            n_requests = cell.n_requests * (1 if measured_key in systems else _MORE_DIRECT)
            yield (
                measured_key,
                measure(system, asks, asks, cell.clients, n_requests, base_url=url),
            )


# --- report ---------------------------------------------------------------------------------


def _report(results: Results, systems: dict[str, System], *, is_quick: bool) -> None:
    print(describe_run("make bench-gateway" + (" ARGS=--quick" if is_quick else "")))
    names = {key: system.name for key, system in systems.items()} | {DIRECT: "fake, asked directly"}
    _print_unary(results, names)
    _print_streams(results, names)
    _print_cpu(results, names)
    print()
    print_figures("gateway", _figures(results), is_quick=is_quick)


def _print_unary(results: Results, names: dict[str, str]) -> None:
    rows = []
    for (cell, key), found in results.items():
        if cell.is_stream:
            continue
        direct = results.get((cell, DIRECT), []) if key == PEER else []
        added = [
            _of(_added_ms(found, direct, p), 2) if key != DIRECT else "" for p in ("p50", "p99")
        ]
        rows.append(
            [
                cell.title,
                names[key],
                _of([m.load.requests_per_s for m in found], 0),
                _of([m.load.e2e_s["p50"] * 1000 for m in found], 2),
                *added,
                _per_core(found, _GATEWAY_ROLES.get(key)),
                _per_core(found, _PATH_ROLES.get(key)),
                f"{max(m.others_cores for m in found):.2f}",
            ]
        )
    head = ["load", "system", "requests/s", "e2e p50 ms", "added p50 ms", "added p99 ms"]
    head += ["requests/CPU s, gateway", "requests/CPU s, whole path", "others' cores"]
    print_table(f"Unary chat, {_UNARY_TOKENS} tokens: median (lowest-highest)", head, rows)


def _print_streams(results: Results, names: dict[str, str]) -> None:
    rows = [
        [
            cell.title,
            names[key],
            _of([m.load.tokens_per_s for m in found], 0),
            _of([m.load.ttft_s["p50"] * 1000 for m in found], 1),
            _of([_tokens_per_cpu_s(m, _GATEWAY_ROLES[key]) for m in found], 0)
            if key in _GATEWAY_ROLES
            else "",
            _of([_tokens_per_cpu_s(m, _PATH_ROLES[key]) for m in found], 0)
            if key in _PATH_ROLES
            else "",
            _of([_tokens_per_arrival(m) for m in found], 2),
        ]
        for (cell, key), found in results.items()
        if cell.is_stream
    ]
    head = ["load", "system", "tokens/s", "TTFT p50 ms", "tokens/CPU s, gateway"]
    head += ["tokens/CPU s, whole path", "tokens an arrival"]
    pace = f"{_TOKENS_PER_S:.0f} tokens/s offered a stream"
    print_table(f"Chat streams of {_STREAM_TOKENS} tokens, {pace}", head, rows)


def _print_cpu(results: Results, names: dict[str, str]) -> None:
    rows = []
    for (cell, key), found in results.items():
        roles: dict[str, list[float]] = defaultdict(list)
        for measured in found:
            for role, cpu_s in measured.cpu_s.items():
                roles[role].append(1000 * cpu_s / len(measured.load.good))
        parts = sorted(((Spread.of(v).mid, role) for role, v in roles.items()), reverse=True)
        text = ", ".join(f"{role} {ms:.2f}" for ms, role in parts if ms >= 0.005)
        rows.append([cell.title, names[key], text])
    print_table("CPU milliseconds a request, by process", ["load", "system", "by process"], rows)


def _of(values: list[float], digits: int) -> str:
    return Spread.of(values).text(digits)


def _added_ms(found: list[Measured], direct: list[Measured], percentile: str) -> list[float]:
    """Latency less what the bare server takes; an echo engine that answers at once takes none."""
    base = [m.load.e2e_s[percentile] for m in direct] or [0.0] * len(found)
    return [
        (m.load.e2e_s[percentile] - without) * 1000 for m, without in zip(found, base, strict=True)
    ]


def _cpu_s(measured: Measured, roles: set[Role]) -> float:
    return max(0.01, sum(measured.cpu_s.get(role, 0.0) for role in roles))


def _requests_per_cpu_s(measured: Measured, roles: set[Role]) -> float:
    return len(measured.load.good) / _cpu_s(measured, roles)


def _tokens_per_cpu_s(measured: Measured, roles: set[Role]) -> float:
    return measured.load.output_tokens / _cpu_s(measured, roles)


def _tokens_per_arrival(measured: Measured) -> float:
    arrivals = sum(len(answer.arrivals_s) for answer in measured.load.good)
    return measured.load.output_tokens / max(1, arrivals)


def _per_core(found: list[Measured], roles: set[Role] | None) -> str:
    return _of([_requests_per_cpu_s(m, roles) for m in found], 0) if roles else ""


def _figures(results: Results) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    one = next(cell for cell, key in results if not cell.is_stream and cell.clients == 1)
    busiest = max((cell for cell, _ in results if not cell.is_stream), key=lambda c: c.clients)
    added = Spread.of(_added_ms(results[one, OURS], [], "p50")).mid
    figures["added_p50_ms_one_client"] = Figure(added, "<= 3.0")
    rates = [measured.load.requests_per_s for measured in results[busiest, OURS]]
    figures["requests_per_s"] = Figure(Spread.of(rates).mid)
    for name, roles in (("gateway", _GATEWAY_ROLES), ("path", _PATH_ROLES)):
        figures[f"requests_per_core_{name}_vs_litellm"] = Figure(
            _ratio_per_core(results, busiest, roles), ">= 5.0"
        )
    streams = max((cell for cell, _ in results if cell.is_stream), key=lambda c: c.clients)
    tokens = Spread.of(m.load.tokens_per_s for m in results[streams, OURS]).mid
    figures["stream_tokens_per_s"] = Figure(tokens)
    return figures


def _ratio_per_core(results: Results, cell: Cell, roles: dict[str, set[Role]]) -> float | None:
    """Requests per CPU second beside LiteLLM's; None where that could not be installed."""
    if (cell, PEER) not in results:
        return None
    pairs = zip(results[cell, OURS], results[cell, PEER], strict=True)
    return Spread.of(
        _requests_per_cpu_s(ours, roles[OURS]) / _requests_per_cpu_s(theirs, roles[PEER])
        for ours, theirs in pairs
    ).mid


if __name__ == "__main__":
    sys.exit(main())
