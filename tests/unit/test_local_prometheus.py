"""`make monitoring`: what it writes for Prometheus, and what it says when it cannot go on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.monitoring import local_prometheus
from cluster.monitoring.local_prometheus import ALERTS, command_of, main, write_config
from tests.support.prometheus import find_promtool


def test_config_finds_targets_through_a_gateway(tmp_path: Path) -> None:
    config = write_config(tmp_path / "p", "http://127.0.0.1:8000/", "5s")
    content = yaml.safe_load(config.read_text())
    (job,) = content["scrape_configs"]
    assert job["http_sd_configs"] == [
        {"url": "http://127.0.0.1:8000/metrics/targets", "refresh_interval": "5s"}
    ]
    assert content["rule_files"] == [str(ALERTS)]
    assert content["global"]["scrape_interval"] == "5s"


@pytest.mark.parametrize("url", ["", "http://127.0.0.1:8000"])
def test_prometheus_takes_the_config_with_fleets(tmp_path: Path, url: str) -> None:
    config = write_config(tmp_path / "p", url, "5s", fleets=tmp_path / "fleet")
    command = [find_promtool(), "check", "config", str(config)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stderr


def test_where_no_platform_is_scraped_none_is_missed(tmp_path: Path) -> None:
    config = write_config(tmp_path / "p", "", "5s", fleets=tmp_path / "fleet")
    (file,) = yaml.safe_load(config.read_text())["rule_files"]
    (group,) = yaml.safe_load(Path(file).read_text())["groups"]
    assert [rule["alert"] for rule in group["rules"]] == ["ReclaimStorm"]


def test_key_is_in_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    config = write_config(tmp_path / "p", "http://h", "5s", key="sk-secret")
    assert "sk-secret" not in config.read_text()
    assert "sk-secret" not in " ".join(command_of("prometheus", config, 9090))
    (job,) = yaml.safe_load(config.read_text())["scrape_configs"]
    key_file = tmp_path / "p" / "key"
    authorization = {"type": "Bearer", "credentials_file": str(key_file)}
    assert job["http_sd_configs"][0]["authorization"] == authorization
    assert key_file.read_text() == "sk-secret"
    assert key_file.stat().st_mode & 0o077 == 0
    assert os.stat(tmp_path / "p").st_mode & 0o077 == 0


def test_without_prometheus_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main([]) == 1
    assert "apt-get install prometheus" in capsys.readouterr().err


def test_without_a_platform_it_says_what_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/prometheus")
    monkeypatch.setattr(local_prometheus, "STATE_FILE", tmp_path / "local.json")
    assert main([]) == 1
    assert "make up" in capsys.readouterr().err
