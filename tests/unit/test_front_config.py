"""What HAProxy is told: its configuration, and the commands from how it is to how it should be."""

import json
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.front_config import Server, describe, plan_commands, write_answers, write_config
from cluster.front_parts import find_haproxy
from cluster.policy.cells import Cell
from serve_app.config_front import FrontSettings

EAST = Cell("east", "http://10.0.0.5:8000")
WEST = Cell("west", "https://west.example.com")


def _server(status: str = "UP", weight: int = 100, n_requests: int = 0, addr: str = "") -> Server:
    row = {"status": status, "weight": str(weight), "scur": str(n_requests), "stot": "9"}
    return Server(row | {"addr": addr})


@pytest.mark.parametrize(
    "settings",
    [
        FrontSettings(),
        FrontSettings(metrics_port=9100, retry_body_bytes=1 << 20, host="0.0.0.0", stop_s=1.0),
    ],
)
def test_haproxy_takes_the_configuration(settings: FrontSettings, tmp_path: Path) -> None:
    write_answers(tmp_path)
    config = tmp_path / "haproxy.cfg"
    safe = Cell("safe", "https://localhost:1")
    config.write_text(write_config(settings, tmp_path, {EAST: 100, safe: 1}))
    done = subprocess.run(
        [find_haproxy(), "-c", "-f", str(config)], capture_output=True, text=True, timeout=30.0
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_a_client_without_a_cell_hears_why_in_openais_form(tmp_path: Path) -> None:
    write_answers(tmp_path)
    head, _, body = (tmp_path / "unavailable.http").read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert b"Retry-After: 2" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["code"] == "cell_unavailable"


def test_a_cell_of_https_has_its_certificate_checked() -> None:
    assert "ssl verify required" in describe(WEST, 5)
    assert "ssl" not in describe(EAST, 5)
    assert describe(WEST, 5).startswith("west west.example.com:443 weight 5 check")


def test_a_new_cell_is_added_checked_and_used() -> None:
    add, check, use = plan_commands({}, {EAST: 7}, [])
    assert add.startswith("add server cells/east 10.0.0.5:8000 weight 7 check")
    assert check == "enable health cells/east"
    assert use == "set server cells/east state ready"


def test_nothing_is_told_that_is_so_already() -> None:
    now = {"east": _server(addr="10.0.0.5:8000"), "west": _server("DRAIN")}
    assert plan_commands(now, {EAST: 100}, [WEST]) == []
    assert plan_commands({"east": _server("DOWN")}, {EAST: 100}, []) == []


def test_a_cell_that_leaves_gets_nothing_new_and_one_that_stays_is_used_again() -> None:
    assert plan_commands({"east": _server()}, {}, [EAST]) == ["set server cells/east state drain"]
    assert plan_commands({"east": _server("DRAIN")}, {EAST: 100}, []) == [
        "set server cells/east state ready"
    ]


def test_a_cell_that_is_gone_is_forgotten_once_its_answers_have_ended() -> None:
    assert plan_commands({"east": _server(n_requests=2)}, {}, []) == [
        "set server cells/east state maint"
    ]
    assert plan_commands({"east": _server("MAINT", n_requests=2)}, {}, []) == []
    assert plan_commands({"east": _server("MAINT")}, {}, []) == ["del server cells/east"]


def test_a_changed_weight_and_address_are_told() -> None:
    now = {"east": _server(addr="10.0.0.4:8000")}
    assert plan_commands(now, {EAST: 9}, []) == [
        "set server cells/east addr 10.0.0.5 port 8000",
        "set server cells/east weight 9",
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"cells": [{"name": "a", "url": "http://h:1"}, {"name": "a", "url": "http://h:2"}]},
        {"cells": [{"name": "a b", "url": "http://h:1"}]},
        {"cells": [{"name": "a", "url": "http://h:1/path"}]},
        {"cells": [{"name": "a", "url": "http://h:1 weight 256"}]},
        {"host": "127.0.0.1\n    daemon"},
        {"fill": 0.0},
    ],
)
def test_what_haproxy_could_not_take_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FrontSettings.model_validate(fields)
