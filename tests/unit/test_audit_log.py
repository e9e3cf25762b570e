"""A router's log of decisions, and the command that checks it."""

import json
from pathlib import Path

import pytest

from deployments.audit_log import AuditLog
from serve_app.cli import main
from serve_app.config import AuditSettings
from serve_app.names import ModelName
from serve_app.policy.fairness import Vtc
from tests.support.batch_engine import BatchEngine

TINY = ModelName("org/tiny")


class LoggedQueue:
    """A fair queue whose decisions are logged to small files."""

    def __init__(self, folder: Path, max_files: int = 100) -> None:
        settings = AuditSettings.model_construct(max_file_bytes=20_000, max_files=max_files)
        self.log = AuditLog(folder, TINY, settings)
        self.queue = Vtc(audit=self.log.add)
        self.engine = BatchEngine(self.queue, seats=3)

    async def serve(self, n_requests: int) -> None:
        for n in range(n_requests):
            self.engine.send("abc"[n % 3], 3 + n % 5, 1 + n % 4)
            self.engine.step()
            if n % 10 == 0:
                await self.log.write(self.queue.tell_all)
        await self.log.write(self.queue.tell_all)


def files_in(folder: Path) -> list[Path]:
    return sorted((folder / "org%2Ftiny").glob("*.jsonl"))


def run(*argv: str) -> int:
    return main(["fairness", "replay", *argv])


async def test_each_file_is_accepted_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await LoggedQueue(tmp_path).serve(600)
    files = files_in(tmp_path)
    assert len(files) > 3
    for file in files:
        assert run(str(file)) == 0
    assert capsys.readouterr().out.count("every decision follows the rules") == len(files)


async def test_only_the_last_files_are_kept_and_no_one_else_reads_them(tmp_path: Path) -> None:
    await LoggedQueue(tmp_path, max_files=2).serve(600)
    files = files_in(tmp_path)
    assert len(files) == 2
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    assert all(file.stat().st_size < 60_000 for file in files)


async def test_log_goes_on_in_a_new_file_after_a_disk_that_was_away(tmp_path: Path) -> None:
    away = tmp_path / "org%2Ftiny"
    away.write_text("in the way")
    logged = LoggedQueue(tmp_path)
    await logged.serve(20)
    away.unlink()
    await logged.serve(20)
    assert run(*map(str, files_in(tmp_path))) == 0


async def test_replay_names_each_decision_out_of_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await LoggedQueue(tmp_path).serve(30)
    (file,) = files_in(tmp_path)
    lines = file.read_text().splitlines()
    admitted = [i for i, line in enumerate(lines) if json.loads(line)["type"] == "Admitted"]
    del lines[admitted[5]]
    file.write_text("\n".join(lines) + "\n")
    assert run(str(file)) == 1
    said = capsys.readouterr().out
    assert "violations" in said
    assert "is waiting, not running" in said
    assert run("--json", str(file)) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert result["violations"]
    assert result["tenants"] == 3


async def test_replay_passes_over_a_line_that_a_kill_has_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await LoggedQueue(tmp_path).serve(30)
    (file,) = files_in(tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    assert run(str(file)) == 0
    assert "was cut off" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["not json\n", '{"type":"Unheard"}\n', None])
def test_replay_says_what_is_wrong_with_a_file(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log.jsonl"
    if content is not None:
        file.write_text(content)
    assert run(str(file)) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    assert "Traceback" not in said


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    assert "arriero fairness replay" in capsys.readouterr().out
