"""Dashboards: what they ask for exists, and Grafana's files are those of the code."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.monitoring.boards import BOARDS
from cluster.monitoring.grafana import FOLDER, main, render_files
from cluster.monitoring.panels import Board, fill_in
from serve_app.telemetry import TABLE
from tests.support.prometheus import find_promtool

KNOWN = {m.name for m in TABLE} | {
    f"{m.name}_{part}" for m in TABLE if m.buckets for part in ("bucket", "count", "sum")
}
BY_BOARD = pytest.mark.parametrize("board", BOARDS, ids=lambda board: str(board.uid))


def test_grafanas_files_are_up_to_date() -> None:
    assert main(["--check"]) == 0
    assert {file.parent for file, _ in render_files()} == {FOLDER}


@BY_BOARD
def test_boards_ask_for_metrics_that_there_are(board: Board) -> None:
    for panel in board.panels():
        for query in panel.queries:
            assert set(re.findall(r"arriero_\w+", query.expr)) <= KNOWN, query.expr


@BY_BOARD
def test_legends_name_labels_that_queries_keep(board: Board) -> None:
    for panel in board.panels():
        for query in panel.queries:
            for label in re.findall(r"{{(\w+)}}", query.legend):
                kept = re.search(rf"by \([^)]*\b{label}\b[^)]*\)", query.expr)
                assert kept or " by " not in query.expr, (panel.title, label)


@BY_BOARD
def test_panels_have_names_of_their_own_and_grafana_has_all(board: Board) -> None:
    titles = [panel.title for panel in board.panels()]
    assert len(set(titles)) == len(titles)
    panels = json.loads((FOLDER / f"{board.uid}.json").read_text())["panels"]
    assert [p["title"] for p in panels if p["type"] != "row"] == titles
    assert len({p["id"] for p in panels}) == len(panels)


def test_every_metric_is_on_some_dashboard() -> None:
    text = " ".join(q.expr for b in BOARDS for p in b.panels() for q in p.queries)
    # Waiting is shown as such; its bound is what an alert is for.
    unseen = {m.name for m in TABLE if m.name not in text}
    assert unseen == {
        "arriero_in_flight_requests",
        "arriero_ledger_leases",
        "arriero_usage_records_lost",
        "arriero_waiting_requests_limit",
    }


def test_queries_are_filled_in_as_grafana_does() -> None:
    asked = fill_in('rate(x{model=~"$model"}[$__rate_interval])', "20s")
    assert asked == 'rate(x{model=~".+"}[20s])'


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    queries = [query.expr for board in BOARDS for p in board.panels() for query in p.queries]
    rules = [{"record": f"q{i}", "expr": fill_in(q, "20s")} for i, q in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    command = [find_promtool(), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
