"""`arriero fleet` with a cloud in memory: what people read, and what it asks before it acts."""

import json
import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import fleet_parts
from cluster.fleet_book import FleetBook
from cluster.fleet_parts import FleetParts
from cluster.machine import choose_free_port
from cluster.provisioner import FleetSetupError
from serve_app import cli
from serve_app.config_file import FleetFile, load_fleet_file
from serve_app.errors import ConfigError
from tests.support.fake_fleet import OFFERS, FakeCloud

_FLEET: dict[str, Any] = {
    "name": "f",
    "target": 2,
    "most_spare": 0,
    "start_up_s": 40.0,
    "period_s": 0.1,
    "drain_s": 1.0,
    "provisioner": {"kind": "local", "zones": [{"name": "east", "spot_usd_per_h": 1.0}]},
}


def _write(folder: Path, fleet: dict[str, Any] | None) -> Path:
    app = {"name": "arriero", "import_path": "serve_app.main:build", "args": {"fleet": fleet}}
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump({"applications": [app]}))
    return file


class _World:
    def __init__(self, folder: Path) -> None:
        self.cloud = FakeCloud()
        self.book = FleetBook(folder / "fleet")
        self.file = str(_write(folder, _FLEET))

    def build(self, file: FleetFile) -> FleetParts:
        return FleetParts(file.fleet, self.book, self.cloud, self.cloud)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _World:
    world = _World(tmp_path)
    monkeypatch.setattr(fleet_parts, "build_fleet", world.build)

    def sleep(seconds: float) -> None:
        world.cloud.now_s += 20.0

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.time", lambda: world.cloud.now_s)
    return world


def test_plan_shows_where_and_why_and_starts_nothing(
    world: _World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fleet", "plan", world.file]) == 0
    shown = capsys.readouterr().out
    assert "x/east/a" in shown
    assert "one machine" in shown
    assert "cheapest cover" in shown
    assert "2 nodes on demand would be $6.00/h" in shown
    assert "less" in shown
    assert world.cloud.machines == {}
    assert not (world.book.folder / "book.json").exists()


def test_up_shows_its_nodes_as_metrics(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    port = choose_free_port("127.0.0.1", 52_800, 52_899)
    assert port is not None
    pages: list[str] = []

    def sleep(seconds: float) -> None:
        world.cloud.now_s += 20.0
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            pages.append(answer.read().decode())

    monkeypatch.setattr("time.sleep", sleep)
    words = ["fleet", "up", world.file, "--until-ready", "--metrics-port", str(port)]
    assert cli.main(words) == 0
    assert re.search(r'arriero_fleet_nodes\{.*market="spot".*\} 2', pages[-1])
    assert re.search(r"arriero_fleet_cost_usd_per_hour\{.*\} [1-9]", pages[-1])


def test_port_for_metrics_that_is_taken_is_said(
    world: _World, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["fleet", "up", world.file, "--metrics-port", str(port)]) == 1
    assert "Choose another port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--metrics-port", "99999"], "ports are 1 to 65535"),
        (["up", "--timeout-s", "soon"], "no number of seconds"),
        (["down", "--within-s", "-1"], "no number of seconds"),
        (["drain", "f-1", "--within-s", "nan"], "no number of seconds"),
    ],
)
def test_numbers_that_are_none_are_wrong_usage(
    world: _World, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["fleet", *words, world.file])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_plan_and_up_say_what_was_left_out(
    world: _World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.cloud.said = ("left out: azure",)
    assert cli.main(["fleet", "plan", world.file]) == 0
    assert "Note: left out: azure." in capsys.readouterr().out
    assert cli.main(["fleet", "plan", world.file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"] == ["left out: azure"]
    assert cli.main(["fleet", "up", world.file, "--until-ready"]) == 0
    assert "left out: azure" in capsys.readouterr().err


def test_nodes_can_be_ended_where_no_prices_are_known(
    world: _World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["fleet", "up", world.file, "--until-ready"])
    monkeypatch.setattr(world.cloud, "list_offers", _no_cloud)
    assert cli.main(["fleet", "plan", world.file]) == 1
    assert "sky check" in capsys.readouterr().err
    node = min(world.cloud.serving())
    assert cli.main(["fleet", "drain", node, world.file]) == 0
    assert node not in world.cloud.machines
    assert cli.main(["fleet", "down", world.file, "--yes"]) == 0
    assert world.cloud.paid() == set()


def _no_cloud() -> None:
    raise FleetSetupError("SkyPilot may use no cloud: sky check")


def test_plan_as_json_has_a_price_for_each_node(
    world: _World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fleet", "plan", world.file, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["usd_per_h"] == pytest.approx(sum(node["usd_per_h"] for node in told["nodes"]))
    assert told["on_demand_usd_per_h"] == 6.0


def test_up_until_ready_then_status_then_down(
    world: _World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["fleet", "up", world.file, "--until-ready"]) == 0
    assert len(world.cloud.serving()) >= 2
    told = capsys.readouterr().err
    assert "asked for" in told
    assert "serves" in told
    assert cli.main(["fleet", "status", world.file]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 serve" in shown
    assert "No controller runs" in shown
    assert cli.main(["fleet", "down", world.file, "--dry-run"]) == 0
    assert "f-1" in capsys.readouterr().out
    assert world.cloud.paid()
    assert cli.main(["fleet", "down", world.file, "--yes"]) == 0
    assert world.cloud.paid() == set()
    assert cli.main(["fleet", "down", world.file, "--yes"]) == 0
    assert "No node is there" in capsys.readouterr().out


def test_status_is_shown_again_until_it_is_broken_off(
    world: _World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["fleet", "up", world.file, "--until-ready"])
    capsys.readouterr()
    looks, told = 0, list[str]()

    def sleep(seconds: float) -> None:
        nonlocal looks
        world.cloud.now_s += 20.0
        looks += 1
        if looks == 1:
            FleetBook(world.book.folder).order("f-1", 1.0)
            fleet_parts.build_fleet(load_fleet_file(Path(world.file))).controller(
                told.append
            ).step()
        if looks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert cli.main(["fleet", "status", world.file, "--every", "1"]) == 130
    shown = capsys.readouterr().out.split("\n\nNODE ")
    assert len(shown) == 3
    assert "leaves" not in shown[0]
    assert "leaves" in shown[1]


def test_down_without_anybody_to_ask_ends_nothing(
    world: _World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["fleet", "up", world.file, "--until-ready"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert cli.main(["fleet", "down", world.file]) == 1
    assert "--yes" in capsys.readouterr().err
    assert world.cloud.paid()


def _interrupt(seconds: float) -> None:
    raise KeyboardInterrupt


def test_command_that_is_broken_off_says_what_it_leaves(
    world: _World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["fleet", "up", world.file, "--until-ready"])
    monkeypatch.setattr("time.sleep", _interrupt)
    assert cli.main(["fleet", "up", world.file]) == 130
    assert "Nodes stay" in capsys.readouterr().err
    with world.book.hold():
        assert cli.main(["fleet", "drain", "f-1", world.file]) == 130
    assert "f-1 is to end, and the controller, process" in capsys.readouterr().err
    assert cli.main(["fleet", "down", world.file, "--yes"]) == 130
    assert "All nodes are to end, and nobody now sees to it" in capsys.readouterr().err


def test_up_says_where_nothing_can_be_asked_for_and_plan_why(
    world: _World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.cloud.refusal = "stock"
    world.cloud.room = {offer.zone: 0 for offer in OFFERS}
    assert cli.main(["fleet", "up", world.file, "--until-ready", "--timeout-s", "0.5"]) == 1
    assert "nothing can be asked for now" in capsys.readouterr().err
    assert cli.main(["fleet", "plan", world.file]) == 0
    assert "refused, so not asked for now" in capsys.readouterr().out


def test_drain_ends_one_node_and_knows_only_the_fleets_own(
    world: _World, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["fleet", "up", world.file, "--until-ready"])
    node = sorted(world.cloud.serving())[0]
    assert cli.main(["fleet", "drain", "f-99", world.file]) == 1
    assert "is no node of this fleet" in capsys.readouterr().err
    assert cli.main(["fleet", "drain", node, world.file]) == 0
    assert node not in world.cloud.machines


def test_drain_without_a_node_says_what_is_missing(
    world: _World, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fleet", "drain", world.file])
    assert "say which node" in capsys.readouterr().err


def test_up_twice_says_who_is_at_it(world: _World, capsys: pytest.CaptureFixture[str]) -> None:
    with world.book.hold():
        assert cli.main(["fleet", "up", world.file]) == 1
    assert "keeps this fleet already" in capsys.readouterr().err


def test_file_without_a_fleet_says_where_an_example_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="local-fleet"):
        load_fleet_file(_write(tmp_path, None))


def test_mistakes_in_a_fleet_are_all_told(tmp_path: Path) -> None:
    wrong = _FLEET | {"target": -1, "colour": "red"}
    with pytest.raises(ConfigError, match="2 problems"):
        load_fleet_file(_write(tmp_path, wrong))


def test_floor_above_the_target_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="floor is 3 while target is 2"):
        load_fleet_file(_write(tmp_path, _FLEET | {"floor": 3}))


def test_local_nodes_without_a_platform_say_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_parts, "STATE_FILE", tmp_path / "local.json")
    with pytest.raises(FleetSetupError, match="arriero up"):
        fleet_parts.build_fleet(load_fleet_file(_write(tmp_path, _FLEET)))


def test_examples_of_fleets_are_valid() -> None:
    for name in ("local-fleet.yaml", "spot-fleet.yaml"):
        file = load_fleet_file(Path(__file__).parents[2] / "configs" / name)
        assert file.fleet.target > 0


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fleet", "up", "--help"])
    assert "arriero fleet down" in capsys.readouterr().out
