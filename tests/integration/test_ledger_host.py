"""The ledger and what it is told of tenants: before it knows everyone it lets nobody in."""

import asyncio
from pathlib import Path

import pytest

from deployments.ledger_host import LedgerHost
from deployments.ledger_journal import FileJournal
from serve_app.errors import InternalError
from tests.integration.conftest import make_settings


def listens(host: LedgerHost) -> bool:
    try:
        return bool(host.endpoint)
    except InternalError:
        return False


async def wait_until_it_listens(host: LedgerHost) -> None:
    async with asyncio.timeout(20.0):
        while not listens(host):  # noqa: ASYNC110 - there is nothing to wait on
            await asyncio.sleep(0.05)


@pytest.fixture
def blocker(tmp_path: Path) -> Path:
    """A file where the store's folder should be."""
    file = tmp_path / "state"
    file.touch()
    return file


async def test_ledger_waits_for_the_store_where_keys_are_on(blocker: Path, tmp_path: Path) -> None:
    settings = make_settings(auth={"kind": "keys"}, store={"state_dir": str(blocker)})
    host = LedgerHost(settings, FileJournal(tmp_path / "journal"), "127.0.0.1")
    host.start()
    await asyncio.sleep(0.5)
    assert not listens(host)
    blocker.unlink()  # noqa: ASYNC240 - short
    await wait_until_it_listens(host)
    host.check_health()
    await host.close()


async def test_ledger_needs_no_store_where_keys_are_off(blocker: Path, tmp_path: Path) -> None:
    settings = make_settings(store={"state_dir": str(blocker)})
    host = LedgerHost(settings, FileJournal(tmp_path / "journal"), "127.0.0.1")
    host.start()
    await wait_until_it_listens(host)
    await host.close()


async def test_store_that_is_replaced_is_watched_without_a_restart(tmp_path: Path) -> None:
    first, second = (
        make_settings(auth={"kind": "keys"}, store={"state_dir": str(tmp_path / name)})
        for name in ("one", "two")
    )
    host = LedgerHost(first, FileJournal(tmp_path / "journal"), "127.0.0.1")
    host.start()
    await wait_until_it_listens(host)
    endpoint = host.endpoint
    host.configure(second)
    async with asyncio.timeout(20.0):
        while not (tmp_path / "two" / "store.db").exists():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    host.check_health()
    assert host.endpoint == endpoint
    await host.close()
