"""Writes docs/metrics.md from the table of metrics, so that it cannot disagree with it.

python -m serve_app.metrics_reference            writes the page
python -m serve_app.metrics_reference --check    fails if the page is not what it would write
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.generated_page import write_or_check
from serve_app.telemetry import TABLE, Metric

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"

UNITS = {
    "seconds": "seconds",
    "bytes": "bytes",
    "usd": "US dollars",
    "usd_per_hour": "US dollars an hour",
    "ratio": "share, 0 to 1",
    "tokens": "tokens",
    "requests": "requests",
    "responses": "answers",
    "refusals": "requests",
    "migrations": "requests",
    "grants": "requests",
    "records_waiting": "records",
    "records_lost": "records",
    "requests_limit": "requests",
    "engines": "engines",
    "engines_lost": "engines",
    "failed_starts": "engines",
    "loads": "adapters",
    "evictions": "adapters",
    "resident": "adapters",
    "leases": "leases",
    "ready": "0 or 1",
    "nodes": "nodes",
    "reclaims": "nodes",
    "notices": "notices",
    "unanswered": "questions",
}
"""What a name's end, without `_total`, says of its unit."""

_INTRODUCTION = """\
# Metrics

<!-- Written by `python -m serve_app.metrics_reference` from serve_app/telemetry.py. -->

Every process shows its own at `/metrics` of a port of its own; `GET /metrics/targets` of any
gateway lists them all in the form of Prometheus' `http_sd_configs`
([operations](operations.md#monitoring), [decision 30](decisions/0030-a-target-a-process.md)).
Prometheus adds `process`, `replica` and `instance` to each series.

`tenant` and `adapter` have at most `metrics.max_tenants` and `metrics.max_adapters` values of
their own in a process, the first that it meets; all others share `(other)`. No label has a
request's id, a key, or text of a prompt or an answer.

Engines that run vLLM also show vLLM's own metrics under their own names, `vllm:...`, and every
process what Prometheus' client library knows of it (`process_resident_memory_bytes`, ...).
"""


def unit_of(metric: Metric) -> str:
    """Returns what a metric counts in.

    Raises:
        LookupError: Its name does not say.
    """
    stem = metric.name.removesuffix("_total")
    ends = [end for end in UNITS if stem.endswith(f"_{end}")]
    if not ends:
        raise LookupError(f"{metric.name} does not end in a unit")
    return UNITS[max(ends, key=len)]


def render_page() -> str:
    """Return the page in Markdown."""
    processes = dict.fromkeys(metric.process for metric in TABLE)
    return _INTRODUCTION + "".join(_render_section(process) for process in processes)


def _render_section(process: str) -> str:
    metrics = [metric for metric in TABLE if metric.process == process]
    rows = "".join(map(_render_row, metrics))
    buckets = "".join(
        f"- `{m.name}`: {', '.join(f'{bound:g}' for bound in m.buckets)}\n"
        for m in metrics
        if m.buckets
    )
    return (
        f"\n## {process.capitalize()}\n\n| name | type | labels | unit | what |\n"
        f"|---|---|---|---|---|\n{rows}" + (f"\nBuckets end at:\n\n{buckets}" if buckets else "")
    )


def _render_row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {unit_of(metric)} | {metric.words} |\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page or check it; return the exit status."""
    words = __doc__.split("\n", 1)[0]
    return write_or_check(argv, PAGE, render_page(), "serve_app.metrics_reference", words)


if __name__ == "__main__":
    sys.exit(main())
