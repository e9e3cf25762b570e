"""Draws cost against availability, as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.spot_sim import Outcome

_MARKS = {"on demand": "s", "SpotHedge": "o", "Arriero": "^"}
"""Spot alone is available for less than 0.9 of the time: far off to the left."""


def draw(results: Mapping[tuple[str, str, float, bool], Sequence[Outcome]], folder: Path) -> Path:
    """Writes one file: a plot a start-up time, a point a trace and policy."""
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "spot"
    starts_s = sorted({start_up_s for _, _, start_up_s, _ in results})
    figure = Figure(figsize=(6 * len(starts_s), 5), layout="constrained")
    axes = figure.subplots(1, len(starts_s), sharey=True, squeeze=False)[0]
    for axis, start_up_s in zip(axes, starts_s, strict=True):
        for (trace, policy, at_s, has_notice), outcomes in results.items():
            if at_s != start_up_s or policy not in _MARKS:
                continue
            available = mean(o.availability for o in outcomes)
            cost = mean(o.cost for o in outcomes)
            axis.plot(
                available,
                cost,
                _MARKS[policy],
                color=f"C{sorted({key[0] for key in results}).index(trace)}",
                fillstyle="none" if has_notice else "full",
                label=f"{policy}, {trace}{', notice' if has_notice else ''}",
            )
        axis.set_title(f"start-up {start_up_s:g} s")
        axis.set_xlabel("share of time with all nodes")
    axes[0].set_ylabel("cost / on-demand")
    axes[-1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spot-cost-availability.svg"
    figure.savefig(path, metadata={"Date": None})
    return path
