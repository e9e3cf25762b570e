from pathlib import Path

import pytest

from deployments.ledger_journal import Closed, FileJournal, Opened, Snapshot, replay
from serve_app.ledger_messages import Usage
from serve_app.policy.leases import LeaseBook, Scope
from serve_app.policy.limits import Limiter
from tests.support.limits import ACME, ask_for, limit_acme

NOW_S = 1_800_000_000.0


def open_journal(folder: Path) -> FileJournal:
    journal = FileJournal(folder)
    journal.open()
    return journal


def read_book(folder: Path) -> LeaseBook:
    book, journal = LeaseBook(30.0), open_journal(folder)
    replay(journal, book)
    journal.close()
    return book


def fill(folder: Path, n_leases: int) -> LeaseBook:
    """Opens leases of 20 tokens and settles each second one to 11."""
    book, journal = LeaseBook(30.0), open_journal(folder)
    limiter = Limiter(limit_acme(), book)
    for i in range(n_leases):
        ask = ask_for(10, 10)
        _, lease = limiter.reserve(ask, NOW_S)
        assert lease is not None
        journal.append([Opened(lease)])
        if i % 2:
            cost = book.settle(ask.lease, Usage(10, 1), NOW_S)
            assert cost is not None
            journal.append([Closed(ask.lease, cost, NOW_S, is_final=True)])
    journal.close()
    return book


def test_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    written = fill(tmp_path, 10)
    assert read_book(tmp_path).state == written.state


@pytest.mark.parametrize("n_bytes_cut", [1, 7, 30])
def test_journal_drops_a_record_that_was_not_written_whole(
    tmp_path: Path, n_bytes_cut: int
) -> None:
    fill(tmp_path, 3)
    file = tmp_path / "journal"
    file.write_bytes(file.read_bytes()[:-n_bytes_cut])
    account = read_book(tmp_path).account(Scope(ACME))
    assert account.minute.tokens == 20 + 11
    fill(tmp_path, 2)
    assert read_book(tmp_path).account(Scope(ACME)).minute.tokens == 2 * (20 + 11)


def test_journal_stops_at_a_record_that_was_damaged(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    file = tmp_path / "journal"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes(content)
    assert read_book(tmp_path).account(Scope(ACME)).minute.tokens == 40


def test_journal_is_short_after_a_snapshot_and_says_the_same(tmp_path: Path) -> None:
    written = fill(tmp_path, 400)
    for lease in list(written.state.ended):
        written.forget(lease)
    journal = open_journal(tmp_path)
    list(journal.read())
    long = journal.n_bytes
    journal.replace(Snapshot(written.state))
    assert journal.n_bytes < long
    journal.close()
    assert read_book(tmp_path).state == written.state


def test_journal_has_one_writer(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    with pytest.raises(BlockingIOError):
        FileJournal(tmp_path).open()
    journal.close()
    open_journal(tmp_path).close()
