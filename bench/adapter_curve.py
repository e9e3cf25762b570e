"""This platform with more and more adapters in use, and what a cold one's request waits."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from bench.adapter_load import Run, draw_trace
from bench.adapter_systems import LENGTHS, N_REGISTERED, Contender, Scale, milliseconds, send
from bench.load import Answer, percentiles
from bench.report import Figure, print_table, say
from bench.systems import MODEL_NAME

Figures = dict[str, Figure]
_PARTS = ("gateway", "queue", "router", "adapter-load", "engine-ttft")
"""Of the time to a first token, as the platform's headers have it."""


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


def report_curve(ours: Contender, scale: Scale) -> Figures:
    rows, figures = [], Figures()
    at: dict[tuple[int, str], float] = {}
    for n_used in scale.used:
        for phase in ("first use", "use"):
            trace = draw_trace(
                n_used,
                scale.n_requests,
                scale.alpha,
                f"{scale.seed}-{n_used}-{phase}",
                LENGTHS,
            )
            before = _settled(ours)
            run = send(ours, trace)
            counts = _settled(ours).since(before)
            at[n_used, phase] = run.tokens_per_s
            rows.append([f"{n_used}, {phase}", *_describe_run_of_ours(run, counts)])
            say(f"{n_used} adapters, {phase}: {run.tokens_per_s:.0f} tokens/s")
            slowest = max(answer.ttft_s for answer in run.answers)
            figures[f"slowest_ttft_s, {n_used}, {phase}"] = Figure(slowest)
    head = ["adapters", "asked for", "tokens/s", "TTFT p50, p99, ms", "of an adapter's first"]
    head += ["running / in memory / coming / not", "imports, ms", "loads, ms", "stall, ms"]
    print_table(f"Adapters in use, of {N_REGISTERED} registered", head, rows)
    least, most = min(n for n in scale.used if n), max(scale.used)
    figures["tokens_per_s_most_beside_least"] = Figure(
        at[most, "use"] / at[least, "use"], ">= 0.93"
    )
    if 0 in scale.used:
        figures["tokens_per_s_least_beside_none"] = Figure(at[least, "use"] / at[0, "use"])
    return figures


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


def report_probe(ours: Contender, scale: Scale) -> Figures:
    """One request at a time beside three other clients: warm, then as many with cold adapters."""
    rows, figures = [], Figures()
    first = 2000
    warm = draw_trace(1, 4 * scale.n_probes, 1.0, f"{scale.seed}-warm", LENGTHS)
    cold = [
        draw if i % 4 else type(draw)(first + i, draw.prompt, draw.output_tokens)
        for i, draw in enumerate(draw_trace(1, 4 * scale.n_probes, 1.0, "cold", LENGTHS))
    ]
    send(ours, draw_trace(1, 8, 1.0, "load it", LENGTHS), 4)
    runs = {"warm": send(ours, warm, 4)}
    before = _settled(ours)
    runs["cold"] = send(ours, cold, 4)
    counts = _settled(ours).since(before)
    answers = {"warm": runs["warm"].answers, "cold": runs["cold"].answers[::4]}
    usual_ms = percentiles([a.parts_ms["gateway"] for a in answers["warm"]])["p50"]
    for name, found in answers.items():
        columns = [milliseconds([a.ttft_s for a in found])]
        columns += [milliseconds([a.parts_ms[part] / 1000 for a in found]) for part in _PARTS]
        rows.append([name, *columns, f"{1000 * runs[name].itl_p99_s:.0f}"])
    head = ["request", "first token", *_PARTS, "time between tokens of all, p99"]
    each = [f"import {counts.mean_ms('import_s', 'imports'):.0f}"]
    each += [f"fetch {counts.mean_ms('fetch_s', 'loads'):.0f}"]
    each += [f"taking in {counts.mean_ms('hold_s', 'loads'):.0f}"]
    print_table(f"First tokens, p50, p99, ms; in the mean {', '.join(each)}", head, rows)
    of_warm = percentiles([a.ttft_s for a in answers["warm"]])
    of_cold = percentiles([a.ttft_s - _fetch_ms(a, usual_ms) / 1000 for a in answers["cold"]])
    for p in ("p50", "p99"):
        beyond = of_cold[p] - of_warm[p]
        figures[f"cold_ttft_{p}_beyond_warm_and_fetch_s"] = Figure(beyond, "<= 0.1")
    return figures


def _fetch_ms(answer: Answer, usual_ms: float) -> float:
    """What a cold request waited for its adapter: its import at the gateway, then its load."""
    return answer.parts_ms["gateway"] - usual_ms + answer.parts_ms["adapter-load"]
