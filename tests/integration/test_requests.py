"""Records of requests: what the answer said stands there; texts are kept where wanted, only."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import pytest

from serve_app.config_store import database_url
from serve_app.keys import hash_key
from serve_app.store.database import Database
from serve_app.store.requests import RequestQuery, RequestRepository
from serve_app.store.usage import UsageRepository
from serve_app.usage import Texts
from tests.integration.conftest import make_settings, write_echo
from tests.support.clients import ask, connect, post
from tests.support.platform import LocalPlatform
from tests.support.usage import make_record

_KEYS = {"a": "key-of-team-a", "b": "key-of-team-b", "admin": "key-of-the-admin"}
_SECRET = "Zanzibar marmalade"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def platform(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    folder = tmp_path_factory.mktemp("records")
    settings = make_settings(
        write_echo(tiny_model),
        auth={"kind": "keys"},
        tenants=[
            {"id": "a", "keys": [{"hash": hash_key(_KEYS["a"])}], "keeps_texts": True},
            {
                "id": "b",
                "keys": [{"hash": hash_key(_KEYS["b"])}],
                "limits": {"requests_per_min": 1000},
            },
            {"id": "ops", "keys": [{"hash": hash_key(_KEYS["admin"]), "scopes": ["admin"]}]},
        ],
        prices={"tiny": {"usd_per_million_completion_tokens": 1000.0}},
        records={"max_text_bytes": 4096},
        store={"state_dir": str(folder / "state"), "usage_batch_s": 0.05},
    )
    with LocalPlatform(settings, folder) as platform:
        yield platform


@pytest.fixture
def run(platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch, run_cli: Run) -> Run:
    monkeypatch.setenv("ARRIERO_URL", platform.url)
    monkeypatch.setenv("ARRIERO_ADMIN_KEY", _KEYS["admin"])
    monkeypatch.setenv("ARRIERO_API_KEY", _KEYS["a"])
    return run_cli


def send(platform: LocalPlatform, tenant: str, name: str, **changes: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": ask(_SECRET), "max_tokens": 8} | changes
    headers = {"authorization": f"Bearer {_KEYS[tenant]}", "x-request-id": name}
    return post(platform.url, "/v1/chat/completions", body, **headers)


def find(platform: LocalPlatform, name: str) -> dict[str, Any]:
    """The record of a request, once it is in the store."""
    url = f"{platform.url}/admin/requests/{quote(name, safe='')}"
    headers = {"authorization": f"Bearer {_KEYS['admin']}"}
    platform.wait_until(lambda: httpx.get(url, headers=headers).is_success, 10.0, f"{name} there")
    found: dict[str, Any] = httpx.get(url, headers=headers).json()
    return found


def test_record_says_what_the_answers_headers_said(platform: LocalPlatform) -> None:
    answer = send(platform, "b", "jobs/7?why=1")
    record = find(platform, "jobs/7?why=1")
    names = ("gateway", "queue", "router", "adapter-load", "engine-ttft", "ttft")
    said = {name: float(answer.headers[f"x-arriero-{name}-ms"]) for name in names}
    assert said == {name: record[f"{name.replace('-', '_')}_ms"] for name in names}
    assert record["engine"] == answer.headers["x-arriero-engine"]
    assert (record["outcome"], record["status"], record["migrations"]) == ("finished", 200, 0)
    assert (record["tenant"], record["model"], record["completion_tokens"]) == ("b", "tiny", 8)
    assert record["cost_usd"] == pytest.approx(0.008)
    assert record["total_ms"] >= record["ttft_ms"] > record["ledger_ms"] > 0.0


def test_refused_and_cancelled_are_there_too(platform: LocalPlatform, run: Run) -> None:
    assert send(platform, "b", "why-bad", temperature=-1).status_code == 400
    record = find(platform, "why-bad")
    assert (record["outcome"], record["status"], record["cost_usd"]) == ("refused", 400, 0.0)
    status, out, _ = run("requests", "list", "--outcome", "refused", "--since", "1h")
    assert status == 0
    assert "why-bad" in out
    assert run("requests", "list", "--until", "1h")[1].count("\n") == 1


def test_texts_are_kept_of_who_wants_it_only(platform: LocalPlatform, run: Run) -> None:
    send(platform, "a", "text-a")
    send(platform, "b", "text-b")
    kept, other = find(platform, "text-a"), find(platform, "text-b")
    assert _SECRET in kept["request"]
    assert json.loads(kept["answer"])["choices"]
    assert (kept["has_texts"], kept["is_whole"]) == (True, True)
    assert (other["has_texts"], other["request"], other["answer"]) == (False, None, None)
    assert _SECRET in run("requests", "show", "text-a")[1]
    folder = Path(platform.settings.store.state_dir or "")
    assert all(b"text-b" not in line or _SECRET.encode() not in line for line in _lines(folder))


def _lines(folder: Path) -> Iterator[bytes]:
    for path in folder.rglob("*.jsonl"):
        yield from path.read_bytes().splitlines()


def test_replay_shows_both_answers_and_where_the_time_went(
    platform: LocalPlatform, run: Run
) -> None:
    stream = connect(platform.url, _KEYS["a"]).chat.completions.create(
        model="tiny",
        messages=ask(_SECRET),
        max_tokens=8,
        stream=True,
        extra_headers={"x-request-id": "again"},
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    find(platform, "again")
    status, out, err = run("replay", "again")
    assert status == 0, err
    before, after = out.split("--- after")
    assert text.strip() in before
    assert text.strip() in after
    assert "engine_ttft_ms" in after
    both = json.loads(run("replay", "again", "--json")[1])
    assert both["before"]["completion_tokens"] == both["after"]["completion_tokens"] == 8


def test_what_cannot_be_replayed_says_why(platform: LocalPlatform, run: Run) -> None:
    send(platform, "b", "no-text")
    send(platform, "a", "long", user="x" * 5000)
    find(platform, "no-text")
    assert find(platform, "long")["is_whole"] is False
    assert "No texts are kept of no-text" in run("replay", "no-text")[2]
    assert "cut off" in run("replay", "long")[2]
    assert "There is no request 'nothing'" in run("replay", "nothing")[2]


def test_export_is_a_parquet_file_of_all_pages(
    platform: LocalPlatform, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.cli_requests._PAGE_ROWS", 2)
    for i in range(5):
        send(platform, "b", f"export-{i}")
    find(platform, "export-4")
    file = tmp_path / "requests.parquet"
    status, out, _ = run("requests", "export", str(file), "--tenant", "b", "--since", "1h")
    assert status == 0
    table = pq.read_table(file)
    assert f"Wrote {table.num_rows:,} requests" in out
    rows = [row for row in table.to_pylist() if row["request_id"].startswith("export-")]
    assert len(rows) == 5
    record = find(platform, "export-0")
    (row,) = [row for row in rows if row["request_id"] == "export-0"]
    assert (row["ttft_ms"], row["cost_usd"]) == (record["ttft_ms"], record["cost_usd"])
    assert row["ended"].timestamp() == pytest.approx(record["ended_s"], abs=1e-5)
    assert _SECRET.encode() not in file.read_bytes()
    assert list(tmp_path.iterdir()) == [file]


def test_texts_are_deleted_by_tenant_and_age_and_records_stay(
    platform: LocalPlatform, run: Run
) -> None:
    send(platform, "a", "forget-me")
    find(platform, "forget-me")
    assert "Neither tenant nor" in run("requests", "delete")[2]
    assert run("requests", "delete", "--older-than", "1h")[1].startswith("Deleted the texts of 0 ")
    status, out, _ = run("requests", "delete", "--tenant", "a")
    assert status == 0
    assert "and 0 records" in out
    assert find(platform, "forget-me")["has_texts"] is False
    assert run("requests", "delete", "--tenant", "a", "--records")[0] == 0
    assert "There is no request" in run("requests", "show", "forget-me")[2]


def test_texts_go_with_their_tenant_and_records_stay(platform: LocalPlatform) -> None:
    headers = {"authorization": f"Bearer {_KEYS['admin']}"}
    with httpx.Client(base_url=platform.url, headers=headers, timeout=30.0) as admin:
        admin.post("/admin/tenants", json={"id": "short", "keeps_texts": True})
        key = admin.post("/admin/keys", json={"tenant": "short"}).json()["key"]
        body = {"model": "tiny", "messages": ask(_SECRET), "max_tokens": 8}
        sent = {"authorization": f"Bearer {key}", "x-request-id": "of-the-short"}
        assert post(platform.url, "/v1/chat/completions", body, **sent).status_code == 200
        assert _SECRET in find(platform, "of-the-short")["request"]
        assert admin.delete("/admin/tenants/short").status_code == 200
        record = find(platform, "of-the-short")
    assert (record["tenant"], record["has_texts"], record["request"]) == ("short", False, None)


def test_what_is_too_old_is_deleted_by_itself_texts_first(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.gateway.accounts._DELETE_EVERY_S", 0.2)
    store = {"state_dir": str(tmp_path / "state"), "usage_batch_s": 0.05}
    records = {"keep_days": 30, "keep_texts_days": 1}
    settings = make_settings(write_echo(tiny_model), store=store, records=records)
    url = database_url(settings.store)
    now_s, day_s = time.time(), 86_400.0
    texts = Texts(path="/v1/completions", request=_SECRET, answer=_SECRET, is_whole=True)
    ancient, old, fresh = (
        make_record(ended_s=now_s - days * day_s, texts=texts) for days in (31, 2, 0)
    )

    async def prepare() -> None:
        database = Database(url)  # It belongs to the event loop that uses it.
        await database.migrate()
        async with database.write() as session:
            await UsageRepository(session).add([ancient, old, fresh])
        await database.close()

    async def find() -> tuple[set[str], set[str]]:
        database = Database(url)
        async with database.read() as session:
            repository = RequestRepository(session)
            names = {row.request_id for row in await repository.find(RequestQuery())}
            with_texts = set(await repository.have_texts(list(names)))
        await database.close()
        return names, with_texts

    left = ({old.request_id, fresh.request_id}, {fresh.request_id})
    asyncio.run(prepare())
    with LocalPlatform(settings, tmp_path) as platform:
        platform.wait_until(lambda: asyncio.run(find()) == left, 10.0, "the old gone")


def test_records_are_for_administrators(platform: LocalPlatform) -> None:
    for path in ("/admin/requests", "/admin/requests/x"):
        headers = {"authorization": f"Bearer {_KEYS['a']}"}
        assert httpx.get(f"{platform.url}{path}", headers=headers).status_code == 403
