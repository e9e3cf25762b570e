"""A fair queue that dies and is followed by another one, which is told what waits and what runs."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.messages import TicketId
from serve_app.policy.fairness import Vtc
from serve_app.policy.fairness_audit import Record, replay
from serve_app.policy.fairness_options import UNITS, MovingAverage
from serve_app.policy.fairness_ticket import Snapshot
from serve_app.policy.queueing import Waiting
from tests.support.batch_engine import BatchEngine, make_request

sent = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 30), st.integers(1, 8)), max_size=30
)


class Gateways:
    """Engines and gateways, which live on; they know what waits, what runs and what ended."""

    def __init__(self, *, predicts: bool) -> None:
        self.records: list[Record] = []
        self.predicts = predicts
        self.engine = BatchEngine(self.make_queue(), seats=4)
        self.waiting: dict[TicketId, Waiting] = {}
        self.known: dict[TicketId, Waiting] = {}
        self.ended: list[TicketId] = []

    def make_queue(self) -> Vtc:
        return Vtc(predictor=MovingAverage() if self.predicts else None, audit=self.records.append)

    @property
    def queue(self) -> Vtc:
        assert isinstance(self.engine.order, Vtc)
        return self.engine.order

    def send(self, tenant: str, prompt: int, output: int) -> None:
        ticket = self.engine.send(tenant, prompt, output)
        self.known[ticket] = self.waiting[ticket] = make_request(ticket, tenant, prompt, output)

    def step(self) -> None:
        self.ended += self.engine.step()
        for ticket in (*self.engine.running, *self.ended):
            self.waiting.pop(ticket, None)

    def replace_queue(self, saved: Snapshot, order: list[TicketId]) -> list[TicketId]:
        """Puts another queue in the dead one's place; returns what ended unknown to it."""
        queue = self.make_queue()
        queue.restore(saved)
        was_running = {ticket.ticket: ticket.produced_tokens for ticket in saved.tickets}
        for ticket in self.ended:
            if ticket in was_running:
                queue.charge(ticket, self.engine.produced[ticket] - was_running[ticket])
                queue.finish(ticket)
        for ticket in order:
            queue.arrive(self.waiting[ticket], self.engine.now_s)
        for ticket, request in self.engine.running.items():
            queue.adopt(request, self.engine.produced[ticket], self.engine.now_s)
        queue.stop_expecting()
        before = {ticket for ticket in self.ended if ticket in self.before}
        self.engine.order = queue
        return [t for t in self.ended if t not in was_running and t not in before]

    def save(self) -> Snapshot:
        self.before = set(self.ended)
        return self.queue.snapshot(holds_waiting=False)


@settings(max_examples=60, deadline=None)
@given(sent, st.integers(0, 20), st.data(), st.booleans())
def test_return_lifts_nobody(
    requests: list[tuple[str, int, int]], steps: int, data: st.DataObject, predicts: bool
) -> None:
    world = Gateways(predicts=predicts)
    for request in requests:
        world.send(*request)
    for _ in range(steps):
        world.step()
    counters, saved = world.queue.counters(), world.save()
    world.replace_queue(saved, data.draw(st.permutations(sorted(world.waiting))))
    assert world.queue.counters() == counters
    assert replay(world.records) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.data(), st.booleans())
def test_death_forgets_only_what_began_and_ended_since_it_last_saved(
    steps: int, unsaved: int, length: int, data: st.DataObject, predicts: bool
) -> None:
    world = Gateways(predicts=predicts)
    for i in range(120):
        world.send("abc"[i % 3], 1 + i % 7, length)
    for _ in range(steps):
        world.step()
    saved = world.save()
    for _ in range(unsaved):
        world.step()
    truth = {t: u for t, u in world.queue.counters().items() if t in world.queue.backlogged()}
    order = data.draw(st.permutations(sorted(world.waiting)))
    unknown = world.replace_queue(saved, order)
    forgotten: defaultdict[str, int] = defaultdict(int)
    for ticket in unknown:
        request = world.known[ticket]
        forgotten[request.tenant] += (request.prompt_tokens + 2 * length) * UNITS
    if not predicts:  # A new queue predicts otherwise, from what it has learned.
        counters = world.queue.counters()
        assert {t: counters[t] + forgotten[t] for t in truth} == truth
    assert replay(world.records) == []


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.booleans(), st.data())
def test_deaths_in_a_row_give_nobody_more(
    pauses: list[int], predicts: bool, data: st.DataObject
) -> None:
    """Two who always wait: long answers of one, short ones of the other."""
    world = Gateways(predicts=predicts)
    for _ in range(80):
        world.send("a", 5, 12)
        world.send("b", 15, 2)
    for steps in pauses:
        for _ in range(min(steps, 8)):
            world.step()
        world.replace_queue(world.save(), data.draw(st.permutations(sorted(world.waiting))))
    assert {request.tenant for request in world.waiting.values()} == {"a", "b"}
    gap = abs(world.engine.service["a"] - world.engine.service["b"])
    assert gap <= 2 * 2 * 4 * (15 + 12)
