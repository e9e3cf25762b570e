import asyncio
import contextlib
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from serve_app.config_store import StoreSettings, database_url
from serve_app.store import usage_recorder
from serve_app.store.database import Database
from serve_app.store.spool import Spool
from serve_app.store.tables import UsageRow
from serve_app.store.usage import UsageQuery, UsageRepository
from serve_app.store.usage_recorder import UsageRecorder
from serve_app.store.usage_sink import DatabaseSink
from serve_app.usage import Texts
from tests.support.postgres import PostgresServer
from tests.support.usage import FakeSink, make_record

FAST = StoreSettings(usage_batch_s=0.05, usage_batch_rows=10)
NOVEMBER = UsageQuery(date(2023, 11, 1), date(2023, 11, 30), by=())

# Prints each request id once its record is acknowledged, until it is killed.
_RECORD_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from serve_app.config_store import StoreSettings, database_url
from serve_app.store.database import Database
from serve_app.store.usage_recorder import UsageRecorder
from serve_app.store.usage_sink import DatabaseSink
from tests.support.usage import make_record

async def main():
    settings = StoreSettings.model_validate_json(sys.argv[1])
    database = Database(database_url(settings))
    recorder = UsageRecorder(Path(settings.state_dir), settings, DatabaseSink(database))
    recorder.start()
    while True:
        records = [make_record() for _ in range(5)]
        await asyncio.gather(*(recorder.record(record) for record in records))
        for record in records:
            print(record.request_id, flush=True)

asyncio.run(main())
"""


async def eventually(is_so: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():  # noqa: ASYNC110 - it is another's state
            await asyncio.sleep(0.01)


def read_spools(folder: Path) -> list[str]:
    texts = []
    for path in folder.glob("usage-*"):
        with contextlib.suppress(FileNotFoundError):  # It was replaced by a shorter one.
            texts.append(path.read_text())
    return texts


async def test_acknowledged_record_is_on_disk_before_the_database_has_it(tmp_path: Path) -> None:
    sink = FakeSink()
    sink.is_away = True
    recorder = UsageRecorder(tmp_path, FAST, sink)
    recorder.start()
    record = make_record(client_request_id="from the client")
    assert await recorder.record(record)
    (text,) = read_spools(tmp_path)
    assert json.loads(text)["request_id"] == record.request_id
    assert sink.rows == {}
    await eventually(lambda: recorder.state.store_problem)
    assert recorder.state.disk_problem == ""
    sink.is_away = False
    await eventually(lambda: record.request_id in sink.rows)
    assert recorder.state.problem == ""
    await recorder.close()
    assert read_spools(tmp_path) == []


async def test_records_are_stored_in_batches(tmp_path: Path) -> None:
    sink = FakeSink()
    recorder = UsageRecorder(tmp_path, FAST, sink)
    recorder.start()
    await asyncio.gather(*(recorder.record(make_record()) for _ in range(95)))
    await eventually(lambda: len(sink.rows) == 95)
    assert max(sink.batches) == 10
    assert len(sink.batches) <= 20
    await recorder.close()


async def test_what_is_not_stored_at_the_end_is_stored_by_the_next_one(tmp_path: Path) -> None:
    away = FakeSink()
    away.is_away = True
    first = UsageRecorder(tmp_path, FAST, away)
    first.start()
    await asyncio.gather(*(first.record(make_record()) for _ in range(25)))
    await first.close(timeout_s=0.2)
    sink = FakeSink()
    second = UsageRecorder(tmp_path, FAST, sink)
    second.start()
    await eventually(lambda: len(sink.rows) == 25)
    await eventually(lambda: not read_spools(tmp_path))
    await second.close()


async def die(recorder: UsageRecorder) -> None:
    """Ends as a process does that is killed: its lock is free, its files stay."""
    for task in recorder._tasks:
        task.cancel()
    assert recorder._spool is not None
    recorder._spool.close(remove=False)


async def test_what_ran_when_a_process_died_is_recorded_as_far_as_it_had_got(
    tmp_path: Path,
) -> None:
    away = FakeSink()
    away.is_away = True
    first = UsageRecorder(tmp_path, FAST, away)
    first.start()
    ended, running = make_record(completion_tokens=9), make_record(outcome="failed")
    await first.note_open([make_record(request_id=ended.request_id, outcome="failed")])
    await first.note_open(
        [make_record(request_id=ended.request_id, outcome="failed", completion_tokens=7), running]
    )
    assert await first.record(ended)
    await die(first)
    sink = FakeSink()
    second = UsageRecorder(tmp_path, FAST, sink)
    second.start()
    await eventually(lambda: not read_spools(tmp_path))
    assert sink.rows == {ended.request_id: ended, running.request_id: running}
    await second.close()


async def test_what_runs_is_in_no_file_once_it_has_ended(tmp_path: Path) -> None:
    sink = FakeSink()
    recorder = UsageRecorder(tmp_path, FAST, sink)
    recorder.start()
    await recorder.note_open([])
    assert read_spools(tmp_path) == []
    await recorder.note_open([make_record()])
    assert len(read_spools(tmp_path)) == 2
    await recorder.note_open([])
    await recorder.close()
    assert read_spools(tmp_path) == []
    assert sink.rows == {}


async def test_what_runs_as_a_recorder_closes_is_left_for_the_next_one(tmp_path: Path) -> None:
    first, running = UsageRecorder(tmp_path, FAST, FakeSink()), make_record(outcome="failed")
    first.start()
    await first.note_open([running])
    await first.close()
    sink = FakeSink()
    second = UsageRecorder(tmp_path, FAST, sink)
    second.start()
    await eventually(lambda: sink.rows == {running.request_id: running})
    await second.close()


async def test_file_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    owner = Spool.create(tmp_path)
    owner.append([make_record()])
    sink = FakeSink()
    recorder = UsageRecorder(tmp_path, FAST, sink)
    recorder.start()
    await asyncio.sleep(0.2)
    await recorder.close()
    assert sink.rows == {}
    owner.close(remove=True)


async def test_disk_that_fails_is_a_state_and_records_go_straight_to_the_database(
    tmp_path: Path,
) -> None:
    sink = FakeSink()
    (tmp_path / "file").write_text("")
    recorder = UsageRecorder(tmp_path / "file", FAST, sink)  # No folder can be made there.
    recorder.start()
    record = make_record()
    assert await asyncio.wait_for(recorder.record(record), 5.0)
    assert record.request_id in sink.rows
    assert "cannot be written to disk" in recorder.state.problem
    (tmp_path / "file").unlink()
    assert await asyncio.wait_for(recorder.record(make_record()), 5.0)
    assert recorder.state.problem == ""
    recorder.check_health()
    await recorder.close()


def test_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool.create(tmp_path)
    first, second, third = (make_record() for _ in range(3))
    spool.append([first])
    real_write = os.write

    def write_half_then_fail(fd: int, data: bytes) -> int:
        if len(data) <= 40:
            raise OSError(28, "No space left on device")
        return real_write(fd, data[:40])

    with monkeypatch.context() as patch:
        patch.setattr("serve_app.store.spool.os.write", write_half_then_fail)
        with pytest.raises(OSError, match="No space"):
            spool.append([second])
    spool.append([third])
    records, end = spool.read(0, 100)
    assert records == [first, third]
    assert end == spool.size
    spool.close(remove=True)


async def test_nothing_is_admitted_long_before_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("serve_app.store.usage_recorder._MAX_WAITING", 30)
    monkeypatch.setattr("serve_app.store.usage_recorder._ROOM_FOR", 10)
    sink = FakeSink()
    sink.is_away = True
    (tmp_path / "file").write_text("")
    recorder = UsageRecorder(tmp_path / "file", FAST, sink)
    recorder.start()
    futures = [recorder.record(make_record()) for _ in range(20)]
    had_room = recorder.has_room
    assert not had_room
    futures += [recorder.record(make_record()) for _ in range(10)]
    assert not await recorder.record(make_record())
    assert recorder.state.lost == 1
    assert "is lost" in caplog.text
    sink.is_away = False
    assert all(await asyncio.wait_for(asyncio.gather(*futures), 10.0))
    assert len(sink.rows) == 30
    assert recorder.has_room
    await recorder.close()


async def test_record_that_no_database_takes_holds_up_no_other(tmp_path: Path) -> None:
    sink = FakeSink()
    bad = make_record()
    sink.refuses = lambda record: record.request_id == bad.request_id
    recorder = UsageRecorder(tmp_path, FAST, sink)
    recorder.start()
    await asyncio.gather(*(recorder.record(r) for r in (make_record(), bad, make_record())))
    await eventually(lambda: len(sink.rows) == 2)
    await recorder.close()
    assert bad.request_id in (tmp_path / "refused.jsonl").read_text()


async def test_texts_are_on_no_disk_once_they_are_stored(tmp_path: Path) -> None:
    """Retention, and who wants them deleted, look in the database only."""
    texts = Texts(path="/v1/completions", request="Zanzibar", answer="marmalade", is_whole=True)
    good, bad = make_record(texts=texts), make_record(texts=texts)
    sink = FakeSink()
    sink.refuses = lambda record: record.request_id == bad.request_id
    recorder = UsageRecorder(tmp_path, FAST, sink)
    recorder.start()
    await asyncio.gather(recorder.record(good), recorder.record(bad))
    await eventually(lambda: good.request_id in sink.rows)
    await eventually(lambda: "Zanzibar" not in "".join(read_spools(tmp_path)))
    refused = (tmp_path / "refused.jsonl").read_text()
    assert bad.request_id in refused
    assert "Zanzibar" not in refused
    assert sink.rows[good.request_id].texts == texts
    await recorder.close()


async def test_file_stays_small_while_records_never_cease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_recorder, "_RESET_BYTES", 4096)
    sink = FakeSink()
    sink.takes_s = 0.05  # So that there is always something that came meanwhile.
    recorder = UsageRecorder(tmp_path, FAST.model_copy(update={"usage_batch_rows": 100}), sink)
    recorder.start()
    most = 0
    for _ in range(250):
        recorder.record(make_record())
        await asyncio.sleep(0.005)
        most = max(most, sum(len(text) for text in read_spools(tmp_path)))
    await recorder.close()
    assert len(sink.rows) == 250
    assert most < 20_000
    assert read_spools(tmp_path) == []


async def test_hostile_text_and_counts_are_made_to_fit(
    database: Database, store_settings: StoreSettings, tmp_path: Path
) -> None:
    settings = store_settings.model_copy(update={"usage_batch_s": 0.05})
    recorder = UsageRecorder(tmp_path, settings, DatabaseSink(database))
    recorder.start()
    record = make_record(
        client_request_id="\x00'; DROP TABLE usage; --\ud800" + "x" * 500,
        adapter="ü" * 500,
        prompt_tokens=1 << 80,
        completion_tokens=-5,
    )
    assert await recorder.record(record)
    await recorder.close()
    async with database.read() as session:
        (total,) = await UsageRepository(session).sum(NOVEMBER)
    assert (total.requests, total.prompt_tokens, total.completion_tokens) == (1, 1 << 53, 0)


async def test_database_that_restarts_loses_and_doubles_nothing(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await asyncio.to_thread(postgres.make_database)
    database = Database(url.replace("postgresql://", "postgresql+asyncpg://"))
    await database.migrate()
    recorder = UsageRecorder(tmp_path, FAST, DatabaseSink(database))
    recorder.start()
    await asyncio.gather(*(recorder.record(make_record()) for _ in range(30)))
    await asyncio.to_thread(postgres.stop)
    assert all(await asyncio.gather(*(recorder.record(make_record()) for _ in range(30))))
    await eventually(lambda: recorder.state.store_problem)
    await asyncio.to_thread(postgres.restart)
    await eventually(lambda: not recorder.state.unstored_bytes, 20.0)
    await recorder.close()
    async with database.read() as session:
        (total,) = await UsageRepository(session).sum(NOVEMBER)
    await database.close()
    assert total.requests == 60


@pytest.mark.slow
async def test_kill_loses_no_acknowledged_record_and_doubles_none(
    database: Database, store_settings: StoreSettings, tmp_path: Path
) -> None:
    settings = store_settings.model_copy(
        update={"state_dir": str(tmp_path / "spool"), "usage_batch_s": 0.02}
    )
    if not database.is_sqlite:
        target = settings
    else:
        path = store_settings.database.model_copy(
            update={"path": database_url(store_settings).removeprefix("sqlite+aiosqlite:///")}
        )
        target = settings.model_copy(update={"database": path})
    acknowledged: list[str] = []
    for kill_after_lines in (1, 40, 200):
        acknowledged += await asyncio.to_thread(_record_and_kill, target, kill_after_lines)
    recorder = UsageRecorder(tmp_path / "spool", settings, DatabaseSink(database))
    recorder.start()
    await eventually(lambda: not read_spools(tmp_path / "spool"), 30.0)
    await recorder.close()
    async with database.read() as session:
        (total,) = await UsageRepository(session).sum(NOVEMBER)
        stored = await _stored_ids(session)
    assert set(acknowledged) <= stored
    assert total.requests == len(stored)
    assert len(acknowledged) == len(set(acknowledged))


def _record_and_kill(settings: StoreSettings, after_lines: int) -> list[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _RECORD_FOR_EVER, settings.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ids = [process.stdout.readline() for _ in range(after_lines)]
    process.kill()
    ids += [line for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    return [line.strip() for line in ids]


async def _stored_ids(session: AsyncSession) -> set[str]:
    return set((await session.scalars(select(UsageRow.request_id))).all())
