"""Fixtures for all kinds of tests. What is slow to make is made once a session."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.support.clients import closed_clients
from tests.support.postgres import HOW_TO_GET_IT, PostgresServer, find_programs
from tests.support.tiny_model import make_tiny_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chaos comes last: how soon all is well again is timed, and by then nothing else runs."""
    items.sort(key=lambda item: item.path.parent.name == "chaos")


_UNTIMED = frozenset(
    f"tests/integration/test_{name}.py"
    for name in (
        "accounts", "adapter_engine", "adapter_store", "adapters", "adapters_admin",
        "adapters_vllm", "admin_cli", "embeddings", "errors", "gateway_cell", "hostile_requests",
        "metrics", "model_source", "openai_api", "openapi_fuzz", "prefixes_vllm", "requests",
        "roaming", "roaming_adapters", "sky_files", "status", "tracing", "wire",
    )
)  # fmt: skip
"""What is answered matters to them, not how soon. Those that share a platform are all here."""


class OneSlowAtATime(LoadScopeScheduling):  # type: ignore[misc]  # It has no types.
    """Tests of how processes get on run one after the other, as alone; beside them the rest."""

    def _split_scope(self, nodeid: str) -> str:
        """Returns what runs in one process, in order."""
        file = nodeid.split("::")[0]
        if file in _UNTIMED:
            return "untimed"
        return "slow" if file.split("/")[1] in ("chaos", "e2e", "integration") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneSlowAtATime:
    """Whichever way of distributing tests is asked for."""
    return OneSlowAtATime(config, log)


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where gateways keep what must survive them, unless a test's settings say where."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("ARRIERO_STATE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL. In CI it has to be there."""
    programs = find_programs()
    if programs is None:
        if os.environ.get("CI"):
            pytest.fail(HOW_TO_GET_IT)
        pytest.skip(HOW_TO_GET_IT)
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """As `tmp_path`, with room in its name for a socket's: a path of those is short."""
    with tempfile.TemporaryDirectory(prefix="at-") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def clients() -> Iterator[None]:
    """Leaves no client of a test open."""
    with closed_clients():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with random weights."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)
