"""Fixtures for all kinds of tests. What is slow to make is made once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import closed_clients
from tests.support.tiny_model import make_tiny_model


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where gateways keep what must survive them, unless a test's settings say where."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("ARRIERO_STATE_DIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def clients() -> Iterator[None]:
    """Leaves no client of a test open."""
    with closed_clients():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with random weights."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)
