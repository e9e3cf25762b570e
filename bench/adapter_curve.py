"""This platform with more and more adapters in use, and what a cold one's request waits."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.adapter_load import Draw, Run, draw_trace
from bench.adapter_systems import LENGTHS, N_REGISTERED, Contender, Scale, milliseconds, send
from bench.load import percentiles
from bench.report import Figure, Spread, print_table, say
from bench.systems import MODEL_NAME

Figures = dict[str, Figure]
_PARTS = ("gateway", "queue", "router", "adapter-load", "engine-ttft")
"""Of the time to a first token, as the platform's headers have it."""
_PROBE_CLIENTS = 4
"""One in four requests is cold."""
_FIRST_COLD = 2000
"""Adapters from this number on are used by no other part."""
_OBJECTIVE_S = 6.0
"""For first tokens, as in S-LoRA."""


@dataclass(frozen=True)
class Counts:
    """What the platform says of itself, or of the time between two such words."""

    values: Mapping[str, float]

    @classmethod
    def read(cls, contender: Contender) -> "Counts":
        """As it says now; it learns of its engines twice a second."""
        contender.system.processes.resume()
        status = contender.status()
        model = status["models"][MODEL_NAME]
        values: dict[str, float] = {**status["adapters"], **model["adapters"]["requests"]}
        for engine in model["engines"]:
            for name, value in engine["adapters"].items():
                values[name] = values.get(name, 0) + value
        return cls(values)

    def since(self, before: "Counts") -> "Counts":
        """What came in between."""
        return Counts({name: n - before.values[name] for name, n in self.values.items()})

    def share(self, *names: str) -> float:
        """Of requests with adapters, those whose adapter was there when they came."""
        n = sum(self.values[k] for k in ("running", "in_memory", "coming", "on_disk", "away"))
        return sum(self.values[name] for name in names) / n if n else 0.0

    def mean_ms(self, name: str, per: str) -> float:
        """Milliseconds of each."""
        return 1000 * self.values[name] / self.values[per] if self.values[per] else 0.0


def _settled(contender: Contender) -> Counts:
    contender.system.processes.resume()
    time.sleep(2.0)
    return Counts.read(contender)


def report_curve(ours: Contender, scale: Scale, figures: Figures) -> None:
    """Measures first use of each line, then use of all of them, round by round.

    Lines of *use* are of adapters that were all used on this machine before, and memory holds what
    another trace of the same popularity left there. Figures are added when all are there.
    """
    rows: list[list[str]] = []
    runs: dict[int, list[Run]] = {n_used: [] for n_used in scale.used}
    phases = ["first use", *("use" for _ in range(scale.rounds))]
    try:
        for number, phase in enumerate(phases):
            for n_used, known in runs.items():
                seed = f"{scale.seed}-{n_used}-{number}"
                trace = draw_trace(n_used, scale.n_requests, scale.alpha, seed, LENGTHS)
                if n_used and known:
                    _use_once(ours, trace, known[-1].draws, scale.clients)
                before = _settled(ours)
                known.append(send(ours, trace, scale.clients))
                counts = _settled(ours).since(before)
                rows.append([f"{n_used}, {phase}", *_describe_run_of_ours(known[-1], counts)])
                say(" | ".join(rows[-1]))
    finally:
        head = ["adapters", "asked for", "tokens/s", "TTFT p50, p99, ms", "of an adapter's first"]
        head += ["running / in memory / coming / not", "imports, ms", "loads, ms", "stall, ms"]
        title = f"Adapters in use, of {N_REGISTERED} registered, {scale.clients} clients"
        print_table(title, head, rows)
    figures |= _compare_lines(scale, runs)


def _use_once(ours: Contender, trace: Sequence[Draw], other: Sequence[Draw], clients: int) -> None:
    """Has every adapter of a trace imported; then leaves in memory what another trace does."""
    first = {draw.adapter: replace(draw, output_tokens=1) for draw in trace}
    send(ours, list(first.values()), clients)
    send(ours, other, clients)


def _compare_lines(scale: Scale, runs: Mapping[int, Sequence[Run]]) -> Figures:
    least, most = min(n for n in scale.used if n), max(scale.used)
    few, many = runs[least][1:], runs[most][1:]
    speeds = _ratios(many, few)
    waits = [fmean(m.ttfts_s()) / fmean(f.ttfts_s()) for m, f in zip(many, few, strict=True)]
    say(f"{most} beside {least}, tokens/s: {speeds.text()}, TTFT: {Spread.of(waits).text()}")
    figures = {
        "tokens_per_s_most_beside_least": Figure(speeds.mid, ">= 0.93"),
        "ttft_mean_most_beside_least": Figure(Spread.of(waits).mid, "<= 1.5"),
    }
    for phase, some in (("first use", runs[most][:1]), ("use", many)):
        found = [ttft_s for run in some for ttft_s in run.ttfts_s()]
        share = sum(s <= _OBJECTIVE_S for s in found) / len(found)
        figures[f"share_within_{_OBJECTIVE_S:g}_s, {most}, {phase}"] = Figure(share, ">= 0.98")
        figures[f"slowest_ttft_s, {most}, {phase}"] = Figure(max(found))
    if 0 in scale.used:
        none = _ratios(few, runs[0][1:])
        say(f"{least} beside none, tokens/s: {none.text()}")
        figures["tokens_per_s_least_beside_none"] = Figure(none.mid)
    return figures


def _ratios(some: Sequence[Run], others: Sequence[Run]) -> Spread:
    """Tokens/s, round by round."""
    pairs = zip(some, others, strict=True)
    return Spread.of(one.tokens_per_s / other.tokens_per_s for one, other in pairs)


def _describe_run_of_ours(run: Run, counts: Counts) -> list[str]:
    here = counts.share("running"), counts.share("in_memory"), counts.share("coming")
    gone = counts.share("on_disk", "away")
    values = counts.values
    return [
        str(run.n_distinct),
        f"{run.tokens_per_s:.0f}",
        milliseconds(run.ttfts_s(first=False)),
        milliseconds(run.ttfts_s(first=True)),
        " / ".join(f"{share:.2f}" for share in (*here, gone)),
        f"{values['imports']:.0f} x {counts.mean_ms('import_s', 'imports'):.0f}",
        f"{values['loads']:.0f} x {counts.mean_ms('fetch_s', 'loads'):.0f} + "
        f"{counts.mean_ms('hold_s', 'loads'):.0f}",
        f"{counts.mean_ms('stall_s', 'loads'):.0f}",
    ]


def report_probe(ours: Contender, scale: Scale, figures: Figures) -> None:
    """Asks for cold adapters one by one, beside three clients of a warm one.

    To fetch is what the gateway's import takes, each request's own, and bringing the files to the
    engine, the mean of all. Whatever else comes on top of a warm request's time is the platform's:
    taking the adapter into memory and to a slot, steps waited for, messages.
    """
    warm_up = draw_trace(1, 8, 1.0, "load it", LENGTHS)
    send(ours, warm_up, _PROBE_CLIENTS)
    n = _PROBE_CLIENTS * scale.n_probes
    warm = send(ours, draw_trace(1, n, 1.0, f"{scale.seed}-warm", LENGTHS), _PROBE_CLIENTS)
    before = _settled(ours)
    draws = draw_trace(1, n, 1.0, f"{scale.seed}-cold", LENGTHS)
    for i in range(0, n, _PROBE_CLIENTS):
        draws[i] = replace(draws[i], adapter=_FIRST_COLD + i)
    cold = send(ours, draws, _PROBE_CLIENTS)
    counts = _settled(ours).since(before)
    found = {"warm": warm.answers, "cold": cold.answers[::_PROBE_CLIENTS]}
    runs = {"warm": warm, "cold": cold}
    rows = []
    for name, answers in found.items():
        columns = [milliseconds([a.ttft_s for a in answers])]
        columns += [milliseconds([a.parts_ms[part] / 1000 for a in answers]) for part in _PARTS]
        rows.append([name, *columns, f"{1000 * runs[name].itl_p99_s:.0f}"])
    head = ["request", "first token", *_PARTS, "time between tokens of all, p99"]
    import_ms, fetch_ms = counts.mean_ms("import_s", "imports"), counts.mean_ms("fetch_s", "loads")
    each = [f"import {import_ms:.0f}", f"fetch {fetch_ms:.0f}"]
    each += [f"taking in {counts.mean_ms('hold_s', 'loads'):.0f}"]
    each += [f"of that steps waited {counts.mean_ms('stall_s', 'loads'):.0f}"]
    print_table(f"First tokens, p50, p99, ms; in the mean {', '.join(each)}", head, rows)
    usual_ms = percentiles([a.parts_ms["gateway"] for a in found["warm"]])["p50"]
    of_warm = percentiles([a.ttft_s for a in found["warm"]])
    of_cold = percentiles([a.ttft_s for a in found["cold"]])
    beyond_fetch = percentiles(
        [a.ttft_s - (a.parts_ms["gateway"] - usual_ms + fetch_ms) / 1000 for a in found["cold"]]
    )
    for p in ("p50", "p99"):
        figures[f"cold_ttft_{p}_beyond_warm_and_fetch_s"] = Figure(
            beyond_fetch[p] - of_warm[p], "<= 0.1"
        )
        figures[f"cold_ttft_{p}_beyond_warm_s"] = Figure(of_cold[p] - of_warm[p])
