"""Alert rules: run by promtool, and each with a section for the one who is woken."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.monitoring.local_prometheus import ALERTS
from cluster.monitoring.slo import TTFT_S, TTFT_SHARE
from serve_app.telemetry import TABLE, TTFT
from tests.support.prometheus import find_promtool

ROOT = Path(__file__).parents[2]
TESTS = Path(__file__).with_name("alerts_test.yaml")
RULES: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]


def test_rules_fire_when_they_should_and_only_then() -> None:
    done = subprocess.run(
        [find_promtool(), "test", "rules", str(TESTS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire() -> None:
    cases = [
        case
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_every_alert_has_a_section_in_the_runbook(rule: dict[str, Any]) -> None:
    page, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^### (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
    assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alerts_ask_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    known = {m.name for m in TABLE} | {
        f"{m.name}_{part}" for m in TABLE if m.buckets for part in ("bucket", "count", "sum")
    }
    assert set(re.findall(r"arriero_\w+", rule["expr"])) <= known


def test_burn_alert_has_the_promise_of_the_dashboards() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "TtftBurn"]
    assert f'le="{TTFT_S:g}"' in rule["expr"]
    assert f"14.4 * {1 - TTFT_SHARE:.2g}" in rule["expr"]
    assert TTFT_S in TTFT.buckets
