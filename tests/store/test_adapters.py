"""Adapters in the store, and what gateways learn of them."""

import asyncio

import pytest

from serve_app.adapter_registry import Adapter, AdapterVersion, ref_of
from serve_app.catalog import Catalog
from serve_app.config_adapters import AdapterFamily, AdapterSettings, AdaptersSettings
from serve_app.names import ModelName, TenantId
from serve_app.store.adapters import AdapterRepository
from serve_app.store.catalog_changes import read_changes
from serve_app.store.catalog_watcher import CatalogWatcher
from serve_app.store.database import Database

FACTS = {"rank": 8, "modules": ["q_proj", "v_proj"], "n_bytes": 1000}


def settings(name: str = "sql", source: str = "/adapters/sql", **more: object) -> AdapterSettings:
    fields = {"name": name, "base": "tiny", "source": source, **more}
    return AdapterSettings.model_validate(fields)


async def note(
    database: Database, adapter: Adapter, content: str, mark: str = "m"
) -> AdapterVersion:
    async with database.write() as session:
        return await AdapterRepository(session).note_version(adapter, content, mark, FACTS, 1.0)


async def refreshed(database: Database, catalog: Catalog) -> Catalog:
    await CatalogWatcher(database, catalog).refresh()
    return catalog


async def test_adapter_comes_back_as_it_was_registered_until_it_is_deleted(
    database: Database,
) -> None:
    full = settings(tenant="acme", aliases=("acme-sql",))
    async with database.write() as session:
        repository = AdapterRepository(session)
        assert await repository.create(full, 1.0) is not None
        assert await repository.create(full, 2.0) is None
    catalog = await refreshed(database, Catalog())
    for name in ("tiny:sql", "acme-sql"):
        assert catalog.adapters.find(name) == Adapter(full, "admin", 1.0)
    async with database.write() as session:
        repository = AdapterRepository(session)
        assert await repository.delete("tiny:sql", 3.0)
        assert not await repository.delete("tiny:sql", 3.0)
    await refreshed(database, catalog)
    assert catalog.adapters.find("tiny:sql") is None
    assert catalog.adapters.find("acme-sql") is None
    async with database.write() as session:
        assert await AdapterRepository(session).create(settings(), 4.0) is not None
    assert (await refreshed(database, catalog)).adapters.find("tiny:sql") is not None


async def test_version_keeps_its_id_and_no_other_ever_gets_it(database: Database) -> None:
    adapter, other = Adapter(settings()), Adapter(settings("chat"))
    first = await note(database, adapter, "a" * 64)
    second = await note(database, adapter, "b" * 64)
    twin = await note(database, other, "a" * 64)
    assert 0 < first.id < second.id < twin.id
    catalog = await refreshed(database, Catalog())
    assert catalog.adapters.current(adapter) == second
    again = await note(database, adapter, "a" * 64, "m2")
    assert (again.id, again.mark) == (first.id, "m2")
    assert (await refreshed(database, catalog)).adapters.current(adapter) == again
    ref = ref_of(again, ModelName("tiny"))
    assert (ref.id, ref.name, ref.version) == (first.id, "tiny:sql", "a" * 64)
    assert ref.place == f"file:///adapters/sql#{'a' * 64}"


async def test_many_who_find_a_version_at_once_give_it_one_id(database: Database) -> None:
    adapter = Adapter(settings())
    found = await asyncio.gather(*(note(database, adapter, "a" * 64) for _ in range(8)))
    assert len({version.id for version in found}) == 1


async def test_version_of_another_source_is_not_taken_for_the_present_one(
    database: Database,
) -> None:
    await note(database, Adapter(settings(source="/old")), "a" * 64)
    catalog = await refreshed(database, Catalog())
    assert catalog.adapters.current(Adapter(settings(source="/new"))) is None


async def test_another_store_in_the_place_of_this_one_forgets_what_was_known(
    database: Database,
) -> None:
    adapter = Adapter(settings())
    await note(database, adapter, "a" * 64)
    catalog = await refreshed(database, Catalog())
    catalog.version = 1000
    changes = await read_changes(database, catalog.version)
    assert changes is not None
    assert changes.is_complete
    catalog.apply(changes)
    assert catalog.adapters.current(adapter) is not None


async def test_member_of_a_family_is_listed_once_it_was_found(database: Database) -> None:
    catalog = Catalog()
    family = AdapterFamily(base=ModelName("tiny"), source="s3://models/all", prefix="t-")
    catalog.adapters.declare(AdaptersSettings(families=(family,), declared=(settings(),)))
    member = catalog.adapters.find("tiny:t-x")
    assert member is not None
    assert (member.source, member.origin) == ("s3://models/all/x", "family")
    assert [adapter.name for adapter in catalog.adapters.known()] == ["tiny:sql"]
    await note(database, member, "a" * 64)
    await refreshed(database, catalog)
    assert [adapter.name for adapter in catalog.adapters.known()] == ["tiny:sql", "tiny:t-x"]


async def test_version_that_has_ended_comes_back_under_its_id(database: Database) -> None:
    adapter = Adapter(settings())
    first = await note(database, adapter, "a" * 64)
    second = await note(database, adapter, "b" * 64)
    catalog = await refreshed(database, Catalog())
    for ended, left in ((first, second), (second, None)):  # The first is not the current one.
        async with database.write() as session:
            await AdapterRepository(session).end_version(ended)
        for each in (catalog, Catalog()):
            assert (await refreshed(database, each)).adapters.current(adapter) == left
    again = await note(database, adapter, "b" * 64)
    assert again.id == second.id
    assert (await refreshed(database, catalog)).adapters.current(adapter) == again


@pytest.mark.parametrize(
    "name", ["tiny:x", "tiny:t-", "tiny:t-../x", "tiny:t-a/b", "tiny:t-.x", "other:t-x", "t-x", ""]
)
async def test_name_that_no_family_can_have_is_unknown(name: str) -> None:
    catalog = Catalog()
    family = AdapterFamily(base=ModelName("tiny"), source="/all", prefix="t-")
    catalog.adapters.declare(AdaptersSettings(families=(family,)))
    assert catalog.adapters.find(name) is None


async def test_declared_adapter_hides_a_registered_one_and_both_hide_a_familys(
    database: Database,
) -> None:
    async with database.write() as session:
        for name in ("sql", "chat"):
            await AdapterRepository(session).create(settings(name, f"/admin/{name}"), 1.0)
    catalog = await refreshed(database, Catalog())
    families = (
        AdapterFamily(base=ModelName("tiny"), source="/all"),
        AdapterFamily(base=ModelName("tiny"), source="/team", prefix="sq", tenant=TenantId("a")),
    )
    declared = settings("sql", "/declared/sql")
    catalog.adapters.declare(AdaptersSettings(declared=(declared,), families=families))

    def source(name: str) -> str:
        found = catalog.adapters.find(name)
        assert found is not None
        return found.source

    assert source("tiny:sql") == "file:///declared/sql"
    assert source("tiny:chat") == "file:///admin/chat"
    assert source("tiny:sqx") == "file:///team/x"
    assert source("tiny:other") == "file:///all/other"
