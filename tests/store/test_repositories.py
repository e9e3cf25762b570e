import asyncio
import time
from datetime import date

import pytest
from sqlalchemy import Engine, event, func, select

from serve_app.catalog import Catalog, Key
from serve_app.config_tenants import Budgets, Limits, TenantLimits, TenantSettings
from serve_app.keys import make_key
from serve_app.names import KeyId, TenantId
from serve_app.store.catalog_changes import read_changes
from serve_app.store.catalog_watcher import CatalogWatcher
from serve_app.store.database import Database
from serve_app.store.keys import KeyRepository
from serve_app.store.tables import UsageRow
from serve_app.store.tenants import TenantRepository
from serve_app.store.usage import UsageQuery, UsageRepository
from tests.support.usage import make_record

A = TenantId("a")
FULL = TenantSettings(
    id=A,
    weight=2.5,
    tier=3,
    limits=TenantLimits(requests_per_min=5, models={"tiny": Limits(max_output_tokens=7)}),
    budgets=Budgets(usd_per_day=1.5),
    allowed_models=("tiny", "tiny:*"),
    has_own_prefix_cache=True,
)


def make_stored_key(tenant: str = "a") -> tuple[str, Key]:
    fresh = make_key()
    return fresh.text, Key(fresh.id, TenantId(tenant), fresh.hash, fresh.prefix, created_s=1.0)


async def test_tenant_comes_back_as_it_was_written(database: Database) -> None:
    async with database.write() as session:
        await TenantRepository(session).create(FULL, 10.0)
    async with database.read() as session:
        tenant = await TenantRepository(session).get(A)
    assert tenant is not None
    assert tenant.settings == FULL
    assert (tenant.source, tenant.created_s, tenant.updated_s) == ("admin", 10.0, 10.0)


async def test_tenant_of_a_name_is_made_once_and_again_after_it_was_deleted(
    database: Database,
) -> None:
    async with database.write() as session:
        repository = TenantRepository(session)
        assert await repository.create(FULL, 1.0) is not None
        assert await repository.create(FULL, 2.0) is None
        assert await repository.delete(A, 3.0)
        assert not await repository.delete(A, 4.0)
        assert await repository.replace(FULL, 4.0) is None
        again = await repository.create(TenantSettings(id=A), 5.0)
        assert again is not None
        assert again.created_s == 5.0
        assert again.settings.weight == 1.0


async def test_key_comes_back_without_its_text(database: Database) -> None:
    text, key = make_stored_key()
    async with database.write() as session:
        await KeyRepository(session).add(key)
    async with database.read() as session:
        assert await KeyRepository(session).get(key.id) == key
        assert await KeyRepository(session).list_all(TenantId("b")) == []
    assert text not in repr(key)


async def test_rotated_key_works_for_its_grace_and_no_longer(database: Database) -> None:
    _, key = make_stored_key()
    fresh = make_key()
    async with database.write() as session:
        repository = KeyRepository(session)
        await repository.add(key)
        successor = await repository.rotate(key.id, fresh, 100.0, 50.0)
        old = await repository.get(key.id)
        assert await repository.rotate(KeyId("key-none"), make_key(), 100.0, 0.0) is None
    assert successor is not None
    assert old is not None
    assert (successor.tenant_id, successor.scopes) == (key.tenant_id, key.scopes)
    assert successor.is_live(1e9)
    assert old.is_live(149.0)
    assert not old.is_live(150.0)


async def test_revoked_key_stays_revoked(database: Database) -> None:
    _, key = make_stored_key()
    async with database.write() as session:
        repository = KeyRepository(session)
        await repository.add(key)
        await repository.revoke(key.id, 10.0)
        again = await repository.revoke(key.id, 20.0)
        assert again is not None
        assert again.revoked_s == 10.0
        assert await repository.rotate(key.id, make_key(), 30.0, 0.0) is None
        assert await repository.revoke(KeyId("key-none"), 10.0) is None


async def test_last_use_is_kept_coarsely(database: Database) -> None:
    _, key = make_stored_key()
    async with database.write() as session:
        repository = KeyRepository(session)
        await repository.add(key)
        await repository.note_use({key.id: 100.0})
        await repository.note_use({key.id: 101.0, KeyId("key-gone"): 5.0})
    async with database.read() as session:
        kept = await KeyRepository(session).get(key.id)
    assert kept is not None
    assert kept.last_used_s == 100.0


async def test_changes_since_a_version_are_those_and_no_others(database: Database) -> None:
    text, key = make_stored_key()
    assert (await read_changes(database, -1)) is not None
    async with database.write() as session:
        await TenantRepository(session).create(FULL, 1.0)
    first = await read_changes(database, 0)
    assert first is not None
    assert [tenant.id for tenant in first.tenants] == ["a"]
    async with database.write() as session:
        await KeyRepository(session).add(key)
    second = await read_changes(database, first.version)
    assert second is not None
    assert (second.tenants, second.keys) == ((), (key,))
    assert await read_changes(database, second.version) is None
    async with database.write() as session:
        await TenantRepository(session).delete(A, 2.0)
        await KeyRepository(session).revoke_all(A, 2.0)
    third = await read_changes(database, second.version)
    assert third is not None
    assert third.deleted == ("a",)
    assert [each.revoked_s for each in third.keys] == [2.0]
    assert text not in repr(third)


async def test_store_that_is_older_than_what_is_known_is_read_anew(database: Database) -> None:
    changes = await read_changes(database, 1000)
    assert changes is not None
    assert changes.is_complete


async def test_watcher_learns_of_a_change_within_two_seconds(database: Database) -> None:
    catalog = Catalog()
    changed = asyncio.Event()
    watcher = CatalogWatcher(database, catalog, changed.set)
    watching = asyncio.create_task(watcher.run())
    await asyncio.wait_for(changed.wait(), 5.0)
    _, key = make_stored_key()
    changed.clear()
    async with database.write() as session:
        await TenantRepository(session).create(FULL, time.time())
        await KeyRepository(session).add(key)
    await asyncio.wait_for(changed.wait(), 2.0)
    caller = catalog.identify(key.hash, time.time())
    assert caller is not None
    assert caller.tenant.settings == FULL
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_usage_is_added_once_however_often_it_is_sent(database: Database) -> None:
    records = [make_record() for _ in range(5)]
    async with database.write() as session:
        assert await UsageRepository(session).add(records) == 5
    async with database.write() as session:
        assert await UsageRepository(session).add([*records, make_record()]) == 1
    query = UsageQuery(date(2023, 11, 14), date(2023, 11, 14), by=())
    async with database.read() as session:
        (total,) = await UsageRepository(session).sum(query)
        rows = (await session.execute(select(func.count()).select_from(UsageRow))).scalar_one()
    assert rows == 6
    assert (total.requests, total.prompt_tokens, total.completion_tokens) == (6, 60, 30)
    assert total.cost_usd == pytest.approx(0.006)


async def test_same_request_within_one_batch_counts_once(database: Database) -> None:
    record = make_record()
    async with database.write() as session:
        assert await UsageRepository(session).add([record, record]) == 1


async def test_writers_at_once_neither_lose_nor_double(database: Database) -> None:
    records = [make_record(tenant_id=TenantId(f"t{i % 7}")) for i in range(200)]

    async def write(part: int) -> None:
        for start in range(0, 200, 20):
            async with database.write() as session:
                await UsageRepository(session).add(records[(start + part * 50) % 200 :][:20])

    await asyncio.gather(*(write(part) for part in range(4)))
    query = UsageQuery(date(2023, 11, 14), date(2023, 11, 14), by=("tenant",))
    async with database.read() as session:
        sums = await UsageRepository(session).sum(query)
    assert sum(each.requests for each in sums) == 200
    assert len(sums) == 7


async def test_batches_of_usage_share_few_statements(database: Database) -> None:
    statements = set[str]()

    def hear(_: object, __: object, statement: str, *___: object) -> None:
        if "INTO usage " in statement:
            statements.add(statement)

    event.listen(Engine, "before_cursor_execute", hear)
    try:
        for n_rows in range(20, 260, 5):
            async with database.write() as session:
                records = [make_record() for _ in range(n_rows)]
                assert await UsageRepository(session).add(records) == n_rows
    finally:
        event.remove(Engine, "before_cursor_execute", hear)
    # Drivers keep what they have prepared, and the more rows the more memory.
    assert len(statements) <= 32
    assert max(map(len, statements)) < 40_000


async def test_usage_is_summed_by_what_is_asked(database: Database) -> None:
    day_s = 86_400.0
    async with database.write() as session:
        await UsageRepository(session).add(
            [
                make_record(),
                make_record(adapter="sql", outcome="failed", cached_tokens=4),
                make_record(model="big", ended_s=1_700_000_000.0 + day_s, outcome="cancelled"),
                make_record(tenant_id=TenantId("b")),
            ]
        )

    async def ask(**changes: object) -> list[tuple[dict[str, str], int]]:
        query = UsageQuery(date(2023, 11, 1), date(2023, 11, 30), **changes)  # type: ignore[arg-type]
        async with database.read() as session:
            return [(s.group, s.requests) for s in await UsageRepository(session).sum(query)]

    assert await ask(by=("tenant",)) == [({"tenant": "a"}, 3), ({"tenant": "b"}, 1)]
    assert await ask(by=("day",), tenant_id=A) == [
        ({"day": "2023-11-14"}, 2),
        ({"day": "2023-11-15"}, 1),
    ]
    assert await ask(by=("model",), adapter="") == [({"model": "big"}, 1), ({"model": "tiny"}, 2)]
    assert await ask(by=(), model="none") == [({}, 0)]
    assert len(await ask()) == 4
    assert len(await ask(most_rows=2)) == 2
