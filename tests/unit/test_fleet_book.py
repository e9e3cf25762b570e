"""What is written down survives whoever writes it."""

from pathlib import Path

import pytest

from cluster.fleet_book import Book, Ended, FleetBook, Seen
from cluster.policy.fleet import Launched, Node, NodeId, Reclaimed, Refused, ZoneId
from cluster.policy.reconcile import Entry
from cluster.provisioner import FleetError

_ZONE = ZoneId("x/east/a")
_ENTRY = Entry(NodeId("f-1"), _ZONE, "spot", 10.0, 1.5, "cheapest cover", up_s=20.0)


def test_book_is_read_as_it_was_written(tmp_path: Path) -> None:
    book = Book(7, (_ENTRY,))
    FleetBook(tmp_path).save(book)
    assert FleetBook(tmp_path).load() == book


def test_no_book_is_an_empty_one(tmp_path: Path) -> None:
    assert FleetBook(tmp_path / "none").load() == Book()


def test_broken_book_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "book.json").write_text("{")
    with pytest.raises(FleetError, match="move it away"):
        FleetBook(tmp_path).load()


def test_disk_that_takes_nothing_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "full").touch()  # a folder that cannot be made
    book = FleetBook(tmp_path / "full" / "fleet")
    with pytest.raises(FleetError, match=r"book\.partial cannot be written"):
        book.save(Book())
    with pytest.raises(FleetError, match=r"ended\.jsonl cannot be written"):
        book.add_ended(Ended(_ENTRY, 30.0))


def test_who_only_looks_whether_it_is_held_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = FleetBook(tmp_path).hold()
    looking.__enter__()
    monkeypatch.setattr("time.sleep", lambda seconds: looking.__exit__(None, None, None))
    with FleetBook(tmp_path).hold() as is_mine:
        assert not is_mine
    with FleetBook(tmp_path).hold(tries=2) as is_mine:
        assert is_mine


def test_history_is_read_and_trimmed_to_the_last(tmp_path: Path) -> None:
    book = FleetBook(tmp_path)
    for i in range(5):
        book.add_seen(Seen(float(i), (), ()))
    assert [seen.at_s for seen in book.read_seen(most=2)] == [3.0, 4.0]
    book.trim_seen(most=3)
    assert len(book.read_seen()) == 5  # not yet twice as long
    book.trim_seen(most=2)
    assert [seen.at_s for seen in book.read_seen()] == [3.0, 4.0]


def test_history_survives_a_writer_that_died_in_the_middle_of_a_line(tmp_path: Path) -> None:
    files = FleetBook(tmp_path)
    news = (Launched(_ZONE, "spot"), Refused(_ZONE, "spot", "quota"), Reclaimed(_ZONE, 1, 2))
    seen = Seen(5.0, news, (Node(NodeId("f-1"), _ZONE, "spot", 1.0, True),))
    files.add_seen(seen)
    with (tmp_path / "history.jsonl").open("a") as stream:
        stream.write('{"at_s": 6.0, "happ')
    files.add_seen(seen)
    assert files.read_seen() == [seen, seen]


def test_node_that_is_noted_twice_as_ended_counts_once(tmp_path: Path) -> None:
    files = FleetBook(tmp_path)
    for _ in range(2):
        files.add_ended(Ended(_ENTRY, 50.0, 3.0))
    assert files.read_ended() == [Ended(_ENTRY, 50.0, 3.0)]


def test_orders_are_kept_until_they_are_followed(tmp_path: Path) -> None:
    files = FleetBook(tmp_path)
    files.order("f-1", 30.0)
    assert FleetBook(tmp_path).orders() == {"f-1": 30.0}
    files.fulfil("f-1")
    files.fulfil("f-1")
    assert files.orders() == {}
