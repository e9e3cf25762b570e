"""`make monitoring`: what it writes for Prometheus, and what it says when it cannot go on."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

from cluster.monitoring import local_prometheus
from cluster.monitoring.local_prometheus import ALERTS, command_of, main, write_config


def test_config_finds_targets_through_a_gateway(tmp_path: Path) -> None:
    config = write_config(tmp_path / "p", "http://127.0.0.1:8000/", "5s")
    content = yaml.safe_load(config.read_text())
    (job,) = content["scrape_configs"]
    assert job["http_sd_configs"] == [
        {"url": "http://127.0.0.1:8000/metrics/targets", "refresh_interval": "5s"}
    ]
    assert content["rule_files"] == [str(ALERTS)]
    assert content["global"]["scrape_interval"] == "5s"


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
