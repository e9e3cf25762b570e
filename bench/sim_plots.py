"""Draws service by tenant over time, one policy beside another, as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.sim_metrics import Floats, list_ticks, rate_service
from bench.simulation import Run
from bench.workloads import Workload


def draw(
    workload: Workload, runs: Mapping[str, Run], folder: Path, bench: str = "simulate"
) -> Path:
    """Writes one file: service/s in windows of a minute above, in all so far below.

    Args:
        workload: What was run.
        runs: By policy, in the order of the columns.
        folder: Is made if need be.
        bench: What the file's name begins with.
    """
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = workload.name
    ticks_s = list_ticks(workload.duration_s)
    figure = Figure(figsize=(4 * len(runs), 5), layout="constrained")
    axes = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    for column, (policy, run) in enumerate(runs.items()):
        axes[0][column].set_title(policy)
        axes[1][column].set_xlabel("s")
        for tenant in run.tenants:
            rate = rate_service(run, tenant, ticks_s)
            axes[0][column].plot(ticks_s, rate, label=tenant)
            axes[1][column].plot(ticks_s, _accumulate(rate, ticks_s))
    axes[0][0].set_ylabel("service/s")
    axes[1][0].set_ylabel("service so far")
    axes[0][0].legend(fontsize="small")
    figure.suptitle(f"{workload.name}: service by tenant")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bench}-{workload.name.replace('/', '-').replace(' ', '-')}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


def _accumulate(rate: Floats, ticks_s: Sequence[float]) -> list[float]:
    total, previous_s, sums = 0.0, 0.0, []
    for value, at_s in zip(rate, ticks_s, strict=True):
        total += float(value) * (at_s - previous_s)
        previous_s = at_s
        sums.append(total)
    return sums
