"""Fixtures for all kinds of tests. What is slow to make is made once a session."""

from pathlib import Path

import pytest

from tests.support.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with random weights."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)
