"""Platforms without Ray, started once for all tests that only talk to them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app import cli
from serve_app.config import Settings, parse_settings
from tests.support.platform import LocalPlatform
from tests.support.settings import write_args, write_model

CONTEXT = 512
"""Context length of the tests' models, in tokens."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            # vLLM's and Ray's own use of deprecated calls is not ours to fail on.
            for category in ("DeprecationWarning", "FutureWarning", "PendingDeprecationWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))


def write_echo(folder: Path, name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A model entry: the echo engine with the tiny model's tokenizer."""
    own = ("tokens_per_s", "max_num_seqs", "batch")
    pace = {key: changes.pop(key) for key in own if key in changes}
    return write_model(
        name,
        source={"kind": "local", "path": str(folder)},
        engine={"kind": "echo", "max_model_len": CONTEXT, **pace},
        **changes,
    )


def write_vllm(folder: Path, name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A model entry: the real engine with a tiny model."""
    args = {
        "max_model_len": CONTEXT,
        "max_num_seqs": 8,
        "enforce_eager": True,
        "dtype": "float32",
    } | changes.pop("args", {})
    return write_model(
        name,
        source={"kind": "local", "path": str(folder)},
        engine={"kind": "vllm", "args": args},
        **changes,
    )


def make_settings(*models: dict[str, Any], **sections: Any) -> Settings:
    return parse_settings(write_args(*models, **sections))


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `arriero` with these words; returns its status and what it wrote."""

    def run(*args: str) -> tuple[int, str, str]:
        status = cli.main(args)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def echo_platform(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    """Two models, `tiny` at once and `paced` at 50 tokens a second, behind two gateways."""
    settings = make_settings(
        write_echo(tiny_model, aliases=["tiny-alias"]),
        write_echo(tiny_model, "paced", tokens_per_s=50.0),
        gateway={"max_body_bytes": 1 << 20},
    )
    folder = tmp_path_factory.mktemp("echo")
    with LocalPlatform(settings, folder, n_gateways=2) as platform:
        yield platform


@pytest.fixture(scope="session")
def vllm_platform(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    """The real engine with the tiny model, as `tiny`, in a process of its own."""
    settings = make_settings(write_vllm(tiny_model))
    folder = tmp_path_factory.mktemp("vllm")
    with LocalPlatform(settings, folder, engines_in_processes=True) as platform:
        yield platform
