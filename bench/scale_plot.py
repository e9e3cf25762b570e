"""Draws what a share of first tokens in time costs, one policy beside another, as SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from bench.autoscale import Result


def draw(results: "Sequence[Result]", folder: Path) -> Path:
    """Writes one file: a panel for each trace and start-up time, a line for each policy."""
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "autoscale"
    keys = sorted({(r.trace, r.start_s) for r in results})
    figure = Figure(figsize=(4 * len(keys), 3.5), layout="constrained")
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    for panel, (trace, start_s) in zip(axes, keys, strict=True):
        here = [r for r in results if (r.trace, r.start_s) == (trace, start_s)]
        for policy in sorted({r.setting.policy for r in here}):
            line = sorted((r for r in here if r.setting.policy == policy), key=lambda r: r.engine_h)
            panel.plot([r.engine_h for r in line], [r.attainment for r in line], "o-", label=policy)
        panel.set_title(f"{trace}, {start_s:g} s to start")
        panel.set_xlabel("engine-hours")
    axes[0].set_ylabel("first tokens in time")
    axes[0].legend(fontsize="small")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "autoscale.svg"
    figure.savefig(path, metadata={"Date": None})
    return path
