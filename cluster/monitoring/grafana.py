"""Writes Grafana's dashboards from `boards`, so that they are reviewed as code.

python -m cluster.monitoring.grafana            writes grafana/dashboards/*.json
python -m cluster.monitoring.grafana --check    fails if they are not what it would write
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from cluster.monitoring.boards import BOARDS
from cluster.monitoring.panels import TONES, Board, Panel

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="arriero-prometheus")
_HEIGHT = 8
_NUMBER_HEIGHT = 4
_GRAFANA_UNITS = {"tokens/s": "suffix: tok/s", "tokens": "suffix: tok"}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files or check them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    files = dict(render_files())
    if not parser.parse_args(argv).check:
        for file, text in files.items():
            file.write_text(text, "utf-8")
        return 0
    stale = [file for file, text in files.items() if not file.exists() or file.read_text() != text]
    stale += sorted(set(FOLDER.glob("*.json")) - files.keys())
    if stale:
        names = ", ".join(file.name for file in stale)
        print(
            f"Dashboards out of date: {names}. Run `python -m cluster.monitoring.grafana`.",
            file=sys.stderr,
        )
    return 1 if stale else 0


def render_files() -> Iterator[tuple[Path, str]]:
    """Yield each dashboard's file and what belongs into it."""
    for board in BOARDS:
        text = JSONEncoder(sort_keys=True, indent=1).encode(_build(board))
        yield FOLDER / f"{board.uid}.json", text + "\n"


def _build(board: Board) -> models.Dashboard:
    built = (
        grafana.Dashboard(board.title)
        .uid(board.uid)
        .description(board.words)
        .tags(["arriero"])
        .time("now-1h", "now")
        .refresh("10s")
        .readonly()
    )
    if board.has_models:
        built = built.with_variable(_models_variable())
    ids = itertools.count(1)
    for row in board.rows:
        built = built.with_row(grafana.Row(row.title).id(next(ids)))
        for panel in row.panels:
            built = built.with_panel(_build_panel(panel).id(next(ids)))
    return built.build()


def _models_variable() -> grafana.QueryVariable:
    return (
        grafana.QueryVariable("model")
        .label("Model")
        .datasource(_SOURCE)
        .query("label_values(arriero_model_ready, model)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".+")
        .multi(True)
    )


def _build_panel(panel: Panel) -> Any:
    built: Any
    if panel.kind == "number":
        built = stat.Panel().height(_NUMBER_HEIGHT)
        built = built.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        built = timeseries.Panel().height(_HEIGHT).fill_opacity(8).min(0)
    built = (
        built.title(panel.title)
        .description(panel.words)
        .datasource(_SOURCE)
        .span(panel.width)
        .unit(_GRAFANA_UNITS.get(panel.unit, panel.unit))
        .thresholds(_thresholds(panel.limit))
    )
    for names, colour in TONES.items() if panel.has_tones else ():
        fixed = models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})
        built = built.override_by_regexp(f"^({names})$", [fixed])
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
        built = built.with_target(target.datasource(_SOURCE).ref_id(chr(ord("A") + index)))
    return built


def _thresholds(limit: float | None) -> grafana.ThresholdsConfig:
    steps = [models.Threshold(color="green", value=None)]
    if limit is not None:
        steps.append(models.Threshold(color="red", value=limit))
    return grafana.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    sys.exit(main())
