"""What is written down of requests while they run."""

from collections.abc import Sequence

import pytest

from serve_app.gateway.answer import FrontEndAnswer
from serve_app.gateway.open_usage import OpenUsage
from serve_app.usage import UsageRecord
from tests.unit.test_meter import FakeLedger, make_meter, produce

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Book:
    """Keeps what was written last."""

    def __init__(self) -> None:
        self.records: Sequence[UsageRecord] = ()

    async def note(self, records: Sequence[UsageRecord]) -> None:
        self.records = records


async def send_nothing(message: object) -> None:
    """Where answers go."""


def answer() -> FrontEndAnswer:
    return FrontEndAnswer(send_nothing, "/v1/completions", 1.0)


async def test_running_request_is_written_with_its_tokens_so_far_and_under_one_name() -> None:
    book, meter = Book(), make_meter(FakeLedger())
    open_usage = OpenUsage(book.note)
    with open_usage.holding(meter, answer()):
        generation = meter.plan("a", 10, (20,))
        await open_usage.write()
        assert book.records == []  # No engine has any of it.
        produce(generation, 3)
        await open_usage.write()
        (first,) = book.records
        produce(generation, 4)
        await open_usage.write()
        (second,) = book.records
        last = meter.close("finished", 200)
    await open_usage.write()
    assert book.records == []
    assert last is not None
    assert [r.completion_tokens for r in (first, second, last)] == [3, 7, 7]
    assert [r.outcome for r in (first, second, last)] == ["failed", "failed", "finished"]
    assert first.request_id == second.request_id == last.request_id
    assert second.cost_usd == last.cost_usd > 0.0
    assert second.client_request_id == "req-1"


async def test_request_that_ends_meanwhile_is_in_what_is_written_no_more() -> None:
    book = Book()
    open_usage = OpenUsage(book.note)
    meters = [make_meter(FakeLedger()) for _ in range(120)]
    for meter in meters:
        produce(meter.plan("a", 10, (20,)), 1)
    held = [open_usage.holding(meter, answer()) for meter in meters]
    for each in held:
        each.__enter__()
    await open_usage.write()
    assert len({record.request_id for record in book.records}) == 120
    for each in held[:119]:
        each.__exit__(None, None, None)
    await open_usage.write()
    assert [record.request_id for record in book.records] == [meters[-1].row_id]
