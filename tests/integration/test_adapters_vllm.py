"""Adapters over HTTP with the real engine: what is said is that adapter's, in that version."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serve_app.keys import make_key
from tests.integration.conftest import make_settings, write_vllm
from tests.support.adapters import ALL_LINEAR, WEIGHTS, make_adapter, make_family
from tests.support.platform import LocalPlatform
from tests.support.streams import Stream

pytestmark = pytest.mark.slow

ADMIN = make_key()
PROMPT = "The quick brown fox jumps over the lazy dog and then it goes home to sleep a long while"


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    make_family(folder / "all", tiny_model, 6, modules=ALL_LINEAR, strength=2.0)
    make_adapter(folder / "rs", tiny_model, seed=50, strength=2.0, use_rslora=True)
    return folder


@pytest.fixture(scope="module")
def platform(
    tiny_model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("platform")
    key = {"hash": ADMIN.hash, "scopes": ["admin", "inference"]}
    settings = make_settings(
        write_vllm(tiny_model, adapters={"slots": 4, "in_memory": 8}),
        auth={"kind": "keys"},
        tenants=[{"id": "operators", "keys": [key]}],
        adapters={
            "families": [{"base": "tiny", "source": str(adapters / "all")}],
            "cache": {"path": str(folder / "cache")},
        },
        store={"state_dir": str(folder / "state")},
    )
    with LocalPlatform(settings, folder, engines_in_processes=True) as platform:
        yield platform


@pytest.fixture
def client(platform: LocalPlatform) -> Iterator[httpx.Client]:
    with platform.client(ADMIN.text) as client:
        yield client


def say(client: httpx.Client, model: str) -> str:
    answer = client.post(
        "/v1/completions",
        json={"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0},
    )
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_each_adapter_says_its_own_in_a_mixed_batch_as_when_it_is_alone(
    client: httpx.Client,
) -> None:
    models = ["tiny", *(f"tiny:a{i:05}" for i in range(6))]
    alone = {model: say(client, model) for model in models}
    assert len(set(alone.values())) == len(models)
    with ThreadPoolExecutor(14) as pool:
        mixed = list(pool.map(lambda model: (model, say(client, model)), models * 4))
    assert all(text == alone[model] for model, text in mixed)


def test_new_version_says_the_new_and_the_prefix_of_the_old_is_not_taken(
    client: httpx.Client, adapters: Path, tiny_model: Path
) -> None:
    source = adapters / "rs"
    body = {"name": "rs", "base": "tiny", "source": str(source)}
    assert client.post("/admin/adapters", json=body).status_code == 201
    old = say(client, "tiny:rs")
    assert say(client, "tiny:rs") == old
    make_adapter(source, tiny_model, seed=51, strength=2.0)
    assert client.post("/admin/adapters/tiny:rs/refresh").status_code == 200
    new = say(client, "tiny:rs")
    twin = body | {"name": "twin"}
    assert client.post("/admin/adapters", json=twin).status_code == 201
    assert say(client, "tiny:twin") == new != old
    client.delete("/admin/adapters/tiny:rs")
    client.delete("/admin/adapters/tiny:twin")


def test_deleted_adapter_leaves_the_engine_when_its_request_has_ended(
    client: httpx.Client, platform: LocalPlatform, adapters: Path
) -> None:
    def in_memory() -> int:
        (engine,) = platform.list_engines()
        return int(engine["adapters"]["in_memory"])

    time.sleep(2.0)  # What other tests deleted leaves, too.
    before = in_memory()
    body = {"name": "brief", "base": "tiny", "source": str(adapters / "rs")}
    assert client.post("/admin/adapters", json=body).status_code == 201
    alone = say(client, "tiny:brief")
    platform.wait_until(lambda: in_memory() == before + 1, 5.0, "in memory")
    long = {"model": "tiny:brief", "prompt": PROMPT, "max_tokens": 300, "temperature": 0}
    streamed = long | {
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    running = Stream(platform.url, streamed, authorization=f"Bearer {ADMIN.text}")
    running.wait_for_first_token()
    client.delete("/admin/adapters/tiny:brief")
    assert running.is_running
    assert running.finish_text().startswith(alone)
    assert json.loads(running.finish()[-2])["usage"]["completion_tokens"] == 300
    platform.wait_until(lambda: in_memory() == before, 5.0, "out of memory")
    gone = client.post("/v1/completions", json=long)
    assert gone.status_code == 404


def test_bad_adapters_do_no_harm(
    client: httpx.Client, platform: LocalPlatform, adapters: Path, tiny_model: Path
) -> None:
    good = say(client, "tiny:a00000")
    for i, content in enumerate((b"", b"\x80\x04.", b"PK\x03\x04", b"\xff" * 1000)):
        make_adapter(adapters / f"all/bad{i}", tiny_model)
        (adapters / f"all/bad{i}" / WEIGHTS).write_bytes(content)
        answer = client.post("/v1/completions", json={"model": f"tiny:bad{i}", "prompt": PROMPT})
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_adapter"
        assert say(client, "tiny:a00000") == good
    assert all(process.is_alive() for process in platform.engine_processes.values())
