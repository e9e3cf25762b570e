from pathlib import Path
from typing import Any

import msgspec
import pytest

from serve_app.config_records import RecordsSettings
from serve_app.config_store import SqliteStore, StoreSettings, database_url
from serve_app.names import TenantId
from serve_app.store import requests
from serve_app.store.database import Database
from serve_app.store.requests import RequestQuery, RequestRepository, delete_all, plan_retention
from serve_app.store.usage import UsageQuery, UsageRepository
from serve_app.usage import Texts, UsageRecord
from tests.support.usage import make_record

A, B = TenantId("a"), TenantId("b")
TEXTS = Texts(path="/v1/completions", request='{"prompt": "1"}', answer="two", is_whole=True)


async def add(database: Database, *records: UsageRecord) -> list[str]:
    async with database.write() as session:
        await UsageRepository(session).add(records)
    return [record.request_id for record in records]


async def find(database: Database, **query: Any) -> list[str]:
    async with database.read() as session:
        rows = await RequestRepository(session).find(RequestQuery(**query))
    return [row.request_id for row in rows]


def make_one(number: int, **changes: Any) -> UsageRecord:
    return make_record(request_id=f"id-{number:03}", **changes)


async def test_record_comes_back_with_all_that_it_says(database: Database) -> None:
    record = make_one(
        1,
        status=200,
        engine="engine-1",
        migrations=2,
        gateway_s=0.1,
        queue_s=0.2,
        router_s=0.3,
        adapter_load_s=0.4,
        engine_ttft_s=0.5,
        ttft_s=1.5,
        ledger_s=0.05,
        total_s=9.0,
        texts=TEXTS,
    )
    await add(database, record)
    async with database.read() as session:
        repository = RequestRepository(session)
        (row,) = await repository.find(RequestQuery(id="id-001"))
        texts = await repository.texts_of("id-001")
        assert await repository.have_texts(["id-001", "id-002"]) == {"id-001"}
    for name in UsageRecord.__struct_fields__:
        if name not in ("texts", "cost_usd"):
            assert getattr(row, name) == getattr(record, name), name
    assert texts is not None
    for name in Texts.__struct_fields__:
        assert getattr(texts, name) == getattr(TEXTS, name)


async def test_each_filter_leaves_what_it_names(database: Database) -> None:
    now_s = 1_700_000_000.0
    await add(
        database,
        make_one(1, tenant_id=A, model="tiny", ended_s=now_s, total_s=1.0, ttft_s=0.1),
        make_one(2, tenant_id=A, model="big", ended_s=now_s + 10, total_s=5.0, ttft_s=None),
        make_one(3, tenant_id=B, adapter="tiny:sql", ended_s=now_s + 20, outcome="failed"),
        make_one(4, tenant_id=B, client_request_id="mine", ended_s=now_s + 30, total_s=9.0),
    )
    for query, numbers in (
        ({}, [4, 3, 2, 1]),
        ({"tenant_id": A}, [2, 1]),
        ({"model": "big"}, [2]),
        ({"adapter": "tiny:sql"}, [3]),
        ({"adapter": ""}, [4, 2, 1]),
        ({"outcome": "failed"}, [3]),
        ({"since_s": now_s + 20}, [4, 3]),
        ({"until_s": now_s + 20}, [2, 1]),
        ({"slower_than_s": 4.0}, [4, 2]),
        ({"ttft_over_s": 0.05}, [1]),
        ({"id": "mine"}, [4]),
        ({"id": "id-003"}, [3]),
        ({"before_id": "id-003"}, [2, 1]),
        ({"most_rows": 3}, [4, 3, 2]),
        ({"tenant_id": B, "outcome": "finished"}, [4]),
    ):
        assert await find(database, **query) == [f"id-{n:03}" for n in numbers], query


async def test_refused_request_is_found_and_in_no_sum(database: Database) -> None:
    await add(database, make_one(1, outcome="refused", prompt_tokens=0), make_one(2))
    assert await find(database, outcome="refused") == ["id-001"]
    record = make_record()
    async with database.read() as session:
        (total,) = await UsageRepository(session).sum(UsageQuery(record.day, record.day, by=()))
    assert total.requests == 1


async def test_deletion_takes_what_is_old_or_a_tenants_in_batches_and_leaves_sums(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "DELETED_AT_ONCE", 3)
    now_s = 1_700_000_000.0
    records = [
        make_one(i, tenant_id=A if i % 2 else B, ended_s=now_s + i, texts=TEXTS) for i in range(20)
    ]
    await add(database, *records)
    assert await delete_all(database, "texts", None, now_s + 10) == 10
    assert await delete_all(database, "texts", A, None) == 5
    assert await delete_all(database, "requests", B, now_s + 10) == 5
    async with database.read() as session:
        left = await RequestRepository(session).have_texts([r.request_id for r in records])
        (total,) = await UsageRepository(session).sum(
            UsageQuery(records[0].day, records[-1].day, by=())
        )
    assert left == {f"id-{i:03}" for i in range(10, 20, 2)}
    assert len(await find(database)) == 15
    assert total.requests == 20


def test_retention_is_by_days_and_never_where_none() -> None:
    settings = RecordsSettings(keep_days=10, keep_texts_days=2)
    day_s = 86_400.0
    assert plan_retention(settings, lambda: 100 * day_s) == [
        ("texts", 98 * day_s),
        ("texts", 90 * day_s),
        ("requests", 90 * day_s),
    ]
    forever = RecordsSettings(keep_days=None)
    assert [kind for kind, _ in plan_retention(forever)] == ["texts"]


def test_line_of_an_older_version_is_read() -> None:
    old = b'{"request_id":"1","tenant_id":"a","model":"m","outcome":"finished",'
    old += b'"started_s":1.0,"ended_s":2.0}'
    record = msgspec.json.decode(old, type=UsageRecord)
    assert (record.status, record.texts, record.ttft_s) == (0, None, None)


async def test_deleted_texts_are_not_left_in_the_file(tmp_path: Path) -> None:
    """SQLite marks what is deleted as free, and leaves it there until it needs the room."""
    settings = StoreSettings(database=SqliteStore(), state_dir=str(tmp_path))
    database = Database(database_url(settings))
    await database.migrate()
    texts = [TEXTS, msgspec.structs.replace(TEXTS, request="Zanzibar marmalade " * 1000)]
    await add(database, *(make_record(texts=each) for each in texts))
    assert await delete_all(database, "texts", A, None) == 2
    await database.close()
    assert b"Zanzibar" not in _read_all(tmp_path)


def _read_all(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("store.db*"))
