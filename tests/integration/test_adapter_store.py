"""The node's cache of adapters with real import workers, and stores that answer, lie or hang."""

import asyncio
import json
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from deployments.adapter_jobs import Away, Look, key_of
from deployments.adapter_store import AdapterStore
from deployments.adapter_workers import AdapterWorkers
from serve_app.config_adapters import AdapterCacheSettings
from serve_app.errors import AdapterAwayError, AdapterRefusedError
from serve_app.messages import AdapterRef
from serve_app.names import ModelName
from serve_app.policy.adapter_shapes import ModelShape, shape_of
from tests.support.adapters import CONFIG, WEIGHTS, make_adapter, make_family

pytestmark = pytest.mark.slow
ONE_KIB = 1 << 10


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> ModelShape:
    found = shape_of(json.loads((tiny_model / "config.json").read_text()), "float32")
    assert found is not None
    return found


def settings(tmp_path: Path, **changes: Any) -> AdapterCacheSettings:
    return AdapterCacheSettings(path=str(tmp_path / "cache"), **changes)


@pytest.fixture
async def store(tmp_path: Path, base: ModelShape) -> AsyncIterator[AdapterStore]:
    store = AdapterStore(settings(tmp_path), base, 64)
    yield store
    await store.close()


def ref(source: str, version: str = "", number: int = 1) -> AdapterRef:
    return AdapterRef(number, "tiny:x", ModelName("tiny"), version, source)


async def test_adapter_is_on_disk_for_whoever_asks_and_fetched_once(
    store: AdapterStore, tmp_path: Path, tiny_model: Path, base: ModelShape
) -> None:
    source = f"file://{make_adapter(tmp_path / 'a', tiny_model)}"
    facts = await store.examine(source)
    wanted = ref(source, facts.version)
    shutil.rmtree(tmp_path / "a")
    paths = set(await asyncio.gather(*(store.ensure(wanted) for _ in range(20))))
    assert {path.name for path in paths} == {key_of(facts.version, base)}
    (path,) = paths
    assert sorted(os.listdir(path)) == [CONFIG, WEIGHTS, "import.json"]
    assert json.loads((path / CONFIG).read_text())["lora_alpha"] == 8
    for _ in range(20):
        store.release(wanted)
    assert store._holds == {}


async def test_what_is_on_disk_is_had_without_a_worker_unless_its_notes_are_damaged(
    tmp_path: Path, tiny_model: Path, base: ModelShape, store: AdapterStore
) -> None:
    source = f"file://{make_adapter(tmp_path / 'a', tiny_model)}"
    wanted = ref(source, (await store.examine(source)).version)
    other = AdapterStore(settings(tmp_path), base, 64)
    path = await other.ensure(wanted)
    assert not other._workers._all
    other.release(wanted)
    (path / "import.json").write_bytes(b"")
    assert await other.ensure(wanted) == path
    assert json.loads((path / "import.json").read_bytes())["version"] == wanted.version
    await other.close()


async def test_bad_adapter_is_refused_and_not_tried_again_at_once(
    store: AdapterStore, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "a", tiny_model)
    (folder / WEIGHTS).write_bytes(b"nothing")
    tried = []
    do = store._workers.do

    async def count(job: Any) -> Any:
        tried.append(job)
        return await do(job)

    monkeypatch.setattr(store._workers, "do", count)
    for _ in range(5):
        with pytest.raises(AdapterRefusedError, match="no safetensors file"):
            await store.examine(f"file://{folder}")
    assert len(tried) == 1
    make_adapter(folder, tiny_model)
    store.forget_failure(f"file://{folder}")
    assert (await store.examine(f"file://{folder}")).rank == 8


async def test_rank_above_an_engines_bound_is_refused_though_another_has_brought_it(
    store: AdapterStore, tmp_path: Path, tiny_model: Path, base: ModelShape
) -> None:
    source = f"file://{make_adapter(tmp_path / 'a', tiny_model, rank=64)}"
    facts = await store.examine(source)
    small = AdapterStore(settings(tmp_path), base, 16)
    with pytest.raises(AdapterRefusedError, match="64 while the engine takes at most 16"):
        await small.ensure(ref(source, facts.version))
    await small.close()


async def test_cache_keeps_its_bound_and_never_removes_what_is_in_use(
    tmp_path: Path, tiny_model: Path, base: ModelShape
) -> None:
    names = make_family(tmp_path / "family", tiny_model, 12, ranks=(8,))
    sources = [f"file://{tmp_path / 'family' / name}" for name in names]
    size = (tmp_path / "family" / names[0] / WEIGHTS).stat().st_size
    bound = AdapterCacheSettings(
        path=str(tmp_path / "cache"), max_gib=(4 * size + 8 * ONE_KIB) / (1 << 30), workers=2
    )
    stores = [AdapterStore(bound, base, 64) for _ in range(2)]
    first = await stores[0].examine(sources[0])
    used = ref(sources[0], first.version)
    path = await stores[0].ensure(used)
    for i, source in enumerate(sources[1:]):
        await stores[i % 2].examine(source)
        assert stores[0]._cache.n_bytes() <= 4 * size + 8 * ONE_KIB
        assert path.is_dir()
    assert len(os.listdir(tmp_path / "cache/ready")) == 4
    assert os.listdir(tmp_path / "cache/staging") == []
    for source in sources[1:4]:
        facts = await stores[1].examine(source)
        await stores[1].ensure(ref(source, facts.version))
    with pytest.raises(AdapterAwayError, match="full of adapters in use"):
        await stores[1].examine(sources[4])
    assert path.is_dir()
    assert len(os.listdir(tmp_path / "cache/ready")) == 4
    for each in stores:
        await each.close()


async def test_worker_killed_at_any_point_leaves_nothing_half_made(
    tmp_path: Path, tiny_model: Path, base: ModelShape
) -> None:
    store = AdapterStore(settings(tmp_path, workers=1), base, 512)
    warm = f"file://{make_adapter(tmp_path / 'warm', tiny_model)}"
    await store.examine(warm)
    for i in range(12):
        await store.look(warm)  # Replaces a worker that was killed when its work was done.
        folder = make_adapter(tmp_path / f"a{i}", tiny_model, rank=512, seed=i)
        (worker,) = store._workers._all
        asking = asyncio.create_task(store.examine(f"file://{folder}"))
        await asyncio.sleep(0.002 * i)
        os.kill(worker.pid, signal.SIGKILL)
        facts = await asking
        path = await store.ensure(ref(f"file://{folder}", facts.version))
        assert (path / WEIGHTS).stat().st_size == facts.n_bytes
        assert len(os.listdir(tmp_path / "cache/ready")) == i + 2
    assert os.listdir(tmp_path / "cache/staging") == []
    await store.close()


async def test_store_that_hangs_is_given_up_at_the_deadline_and_holds_up_nobody(
    tmp_path: Path, tiny_model: Path, base: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(HangingStore) as url:
        set_s3(monkeypatch, url)
        bounds = settings(tmp_path, fetch_timeout_s=3.0, workers=2)
        store = AdapterStore(bounds, base, 64)
        slow = asyncio.create_task(store.examine("s3://models/slow"))
        await asyncio.sleep(0.5)
        good = make_adapter(tmp_path / "a", tiny_model)
        await asyncio.wait_for(store.examine(f"file://{good}"), 2.0)
        assert not slow.done()
        with pytest.raises(AdapterAwayError, match="within 3 s"):
            await slow
        monkeypatch.setattr("deployments.adapter_store._LOOK_S", 0.2)
        with pytest.raises(AdapterAwayError, match=r"within 0\.2 s"):
            await store.look("s3://models/slow")
        await store.close()


# --- object stores ------------------------------------------------------------------------------


def set_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


class Server:
    """A small HTTP server in a thread."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class HangingStore(Quiet):
    def do_HEAD(self) -> None:
        threading.Event().wait(30.0)

    def do_GET(self) -> None:
        self.do_HEAD()


class CutOffStore(Quiet):
    """Says that files are long, and ends after half of them."""

    content = b"x" * 4000

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", '"a"')
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content[:2000])
        self.close_connection = True


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator["boto3.client"]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    set_s3(monkeypatch, f"http://{host}:{port}")
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    client.close()
    server.stop()


def put(bucket: Any, folder: Path, prefix: str) -> None:
    for name in (CONFIG, WEIGHTS):
        bucket.put_object(
            Bucket="models", Key=f"{prefix}/{name}", Body=(folder / name).read_bytes()
        )


async def test_adapter_comes_out_of_a_bucket_and_its_new_version_is_noticed(
    bucket: Any, store: AdapterStore, tmp_path: Path, tiny_model: Path
) -> None:
    folder = make_adapter(tmp_path / "a", tiny_model)
    put(bucket, folder, "adapters/sql")
    facts = await store.examine("s3://models/adapters/sql")
    local = await store.examine(f"file://{folder}")
    assert facts.version == local.version
    assert await store.look("s3://models/adapters/sql") == facts.mark
    put(bucket, make_adapter(folder, tiny_model, seed=1), "adapters/sql")
    assert await store.look("s3://models/adapters/sql") != facts.mark
    assert (await store.examine("s3://models/adapters/sql")).version != facts.version
    for missing in ("s3://models/adapters/none", "s3://nowhere/adapters/sql"):
        with pytest.raises(AdapterRefusedError) as caught:
            await store.examine(missing)
        assert caught.value.is_missing


async def test_store_that_cuts_off_or_cannot_be_reached_is_told_apart_from_a_bad_adapter(
    store: AdapterStore, tmp_path: Path, base: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(CutOffStore) as url:
        set_s3(monkeypatch, url)
        with pytest.raises(AdapterAwayError, match="Not enough data"):
            await store.examine("s3://models/cut")
    set_s3(monkeypatch, "http://127.0.0.1:9")
    other = AdapterStore(settings(tmp_path), base, 64)  # Workers' environment is of their start.
    with pytest.raises(AdapterAwayError, match="cannot be read"):
        await other.examine("s3://models/away")
    await other.close()


async def test_store_that_lies_about_the_content_is_refused(
    bucket: Any, store: AdapterStore, tmp_path: Path, tiny_model: Path, base: ModelShape
) -> None:
    put(bucket, make_adapter(tmp_path / "a", tiny_model), "sql")
    facts = await store.examine("s3://models/sql")
    put(bucket, make_adapter(tmp_path / "b", tiny_model, seed=5), "sql")
    shutil.rmtree(tmp_path / "cache/ready" / key_of(facts.version, base))
    with pytest.raises(AdapterAwayError, match="not those of version"):
        await store.ensure(ref("s3://models/sql", facts.version))


def make_cloud_storage(folder: Path) -> Any:
    """Google's store with the bucket `models`, as far as its client asks for `sql` in it."""

    class CloudStorage(Quiet):
        protocol_version = "HTTP/1.1"
        more: ClassVar[dict[str, str]] = {}

        def do_GET(self) -> None:
            place = urlsplit(self.path)
            name = unquote(place.path).rpartition("/o/sql/")[2]
            if name not in os.listdir(folder):
                is_listing = place.path.endswith("/b/models/o")
                return self._send(200 if is_listing else 404, b"{}")
            content = (folder / name).read_bytes()
            if "alt=media" in place.query:
                first, _, last = self.headers["Range"].partition("=")[2].partition("-")
                return self._send(206, content[int(first) : int(last) + 1])
            about = {"name": f"sql/{name}", "bucket": "models", "size": str(len(content))}
            about |= self.more
            return self._send(200, json.dumps(about | {"etag": hash(content)}).encode())

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return CloudStorage


async def test_adapter_comes_out_of_googles_store(
    store: AdapterStore, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "a", tiny_model)
    cloud = make_cloud_storage(folder)
    with Server(cloud) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        facts = await store.examine("gs://models/sql")
        assert facts.version == (await store.examine(f"file://{folder}")).version
        assert await store.look("gs://models/sql") == facts.mark
        with pytest.raises(AdapterRefusedError) as caught:
            await store.examine("gs://models/none")
        assert caught.value.is_missing
        cloud.more = {"contentEncoding": "gzip"}  # It would be unpacked without a bound.
        with pytest.raises(AdapterRefusedError, match="content encoding 'gzip'"):
            await store.examine("gs://models/sql")


# --- the hub ------------------------------------------------------------------------------------


def make_hub(folder: Path) -> type[BaseHTTPRequestHandler]:
    """A hub with the one repository `team/sql`, as far as its client asks."""
    commit = "a" * 40

    class Hub(Quiet):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            files = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/team/sql"):
                siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
                tree = [
                    {"type": "file", "path": n, "size": len(c), "oid": "0" * 40}
                    for n, c in files.items()
                ]
                info = {"id": "team/sql", "sha": commit, "siblings": siblings}
                self._send(json.dumps(tree if "/tree/" in path else info).encode())
            elif path.startswith("/team/sql/resolve/") and name in files:
                self._send(files[name], ETag=f'"{len(files[name])}"')
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def _send(self, content: bytes, **headers: str) -> None:
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    return Hub


async def test_adapter_comes_from_the_hub_by_its_own_client(
    tmp_path: Path, tiny_model: Path, base: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "a", tiny_model)
    with Server(make_hub(folder)) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        store = AdapterStore(settings(tmp_path), base, 64)
        facts = await store.examine("hf://team/sql@main")
        assert facts.version == (await store.examine(f"file://{folder}")).version
        assert await store.look("hf://team/sql@main") == facts.mark
        with pytest.raises(AdapterRefusedError) as caught:
            await store.examine("hf://team/none@main")
        assert caught.value.is_missing
        await store.close()
    assert os.listdir(tmp_path / "cache/staging") == []


async def test_workers_that_are_closed_start_no_other_for_what_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(HangingStore) as url:
        set_s3(monkeypatch, url)
        workers = AdapterWorkers(settings(tmp_path))
        await workers.warm_up()
        looking = asyncio.create_task(workers.do(Look("s3://models/slow")))
        await asyncio.sleep(0.2)
        await workers.close()
        assert await looking == Away("What brings it here is being set up anew.", 1.0)
        assert workers._all == set()


async def test_who_waits_for_a_store_that_is_closed_hears_of_it(
    tmp_path: Path, base: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(HangingStore) as url:
        set_s3(monkeypatch, url)
        store = AdapterStore(settings(tmp_path), base, 64)
        waiting = [asyncio.create_task(store.examine("s3://models/slow")) for _ in range(3)]
        await asyncio.sleep(0.2)
        waiting[0].cancel()  # One that goes away takes nothing from the others.
        await asyncio.sleep(0.2)
        assert not waiting[1].done()
        await store.close()
        for task in waiting[1:]:
            with pytest.raises(AdapterAwayError, match="set up anew"):
                await task
